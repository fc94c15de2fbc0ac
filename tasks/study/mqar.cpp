#include "tasks/study/recall_grid.h"

namespace margay {
namespace {

RecallGrid grid() {
  return {
      .task = "mqar",
      .title = "Multi-query associative recall",
      .task_settings = {},
      .small_steps = 400,
      .models =
          {
              {"CAT", {"model.mixer=cat"}, 1e-2},
              {"LinCAT", {"model.mixer=lincat", "model.lincat.feature_map=taylor2"}, 1e-2},
              {"Attention", {"model.mixer=attention", "model.n_layers=2", "model.position=learned"}, 2e-3},
              {"Based", {"model.mixer=[\"base_conv\", \"based\"]", "model.n_layers=2"}, 1e-2},
              {"Mamba", {"model.mixer=mamba", "model.n_layers=2"}, 1e-2},
              {"Hyena", {"model.mixer=hyena", "model.n_layers=2"}, 1e-2},
              {"RWKV", {"model.mixer=rwkv", "model.n_layers=2"}, 1e-2},
              {"H3", {"model.mixer=h3", "model.n_layers=2"}, 4e-3},
          },
      .small_models = 6,
      .reading =
          "A sequence gives pairs of a key and a value; then every key comes once more, and its value is to be "
          "predicted. The paper finds that one layer of CAT does better than two layers of every baseline, at "
          "every length.",
  };
}

}  // namespace

extern const Study kMqarStudy;
constinit const Study kMqarStudy = {
    .name = "mqar",
    .summary =
        "Multi-query associative recall over model width and sequence length (figure 2, right, and figure 5, top)",
    .plan = [](const StudySettings& settings) { return recall_plan(grid(), settings); },
};

}  // namespace margay
