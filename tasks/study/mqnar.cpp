#include "tasks/study/recall_grid.h"

namespace margay {
namespace {

RecallGrid grid() {
  return {
      .task = "mqnar",
      .title = "Multi-query 2-gram associative recall",
      .task_settings = {"task.n_gram=2"},
      .small_steps = 400,
      .models =
          {
              {"CAT", {"model.mixer=cat", "model.n_heads=2", "model.cat.conv_width=4"}, 1e-2},
              {"LinCAT",
               {"model.mixer=lincat", "model.n_heads=2", "model.lincat.feature_map=taylor2", "model.cat.conv_width=4"},
               1e-2},
              {"Attention",
               {"model.mixer=attention", "model.n_layers=2", "model.n_heads=2", "model.position=learned"},
               2e-3},
              {"Based", {"model.mixer=[\"base_conv\", \"based\"]", "model.n_layers=2"}, 1e-2},
              {"Hyena", {"model.mixer=hyena", "model.n_layers=2"}, 1e-2},
              {"Mamba", {"model.mixer=mamba", "model.n_layers=2"}, 1e-2},
              {"RWKV", {"model.mixer=rwkv", "model.n_layers=2"}, 1e-2},
              {"H3", {"model.mixer=h3", "model.n_layers=2"}, 4e-3},
          },
      .small_models = 5,
      .reading =
          "As mqar, but a key is two tokens out of a few, so that neither of them alone tells which pair is asked "
          "for. The paper finds CAT and LinCAT with one layer ahead of two layers of the baselines. Their filters have "
          "four taps here: two for the key, one for its delay, one to spare (with three, CAT stays near 80 % at 64 "
          "tokens), and two heads: one head took three of the nine cells to a plateau where it mixes keys up.",
  };
}

}  // namespace

extern const Study kMqnarStudy;
constinit const Study kMqnarStudy = {
    .name = "mqnar",
    .summary =
        "Multi-query recall of what followed two tokens, over model width and sequence length (figure 5, bottom)",
    .plan = [](const StudySettings& settings) { return recall_plan(grid(), settings); },
};

}  // namespace margay
