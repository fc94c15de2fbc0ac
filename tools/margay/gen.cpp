#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/names.h"
#include "engine/npy.h"
#include "engine/parallel.h"
#include "tasks/batch.h"
#include "tasks/registry.h"
#include "tasks/train/folders.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

constexpr int64_t kTokensAtOnce = int64_t{1} << 20;

void write_ids(FileWriter& file, const std::vector<int32_t>& ids) {
  file.write(ids.data(), ids.size() * sizeof(int32_t));
}

/// Writes inputs.npy and targets.npy, a few examples at a time.
void write_examples(const Task& task, Split split, int64_t count, const std::string& folder) {
  const int64_t seq_len = task.config().seq_len, columns = task.columns(seq_len);
  const std::string header = npy_header(DType::i32, {count, columns});
  const int64_t at_once = std::max<int64_t>(1, kTokensAtOnce / columns);
  write_file_atomically(folder + "/inputs.npy", [&](FileWriter& inputs) {
    write_file_atomically(folder + "/targets.npy", [&](FileWriter& targets) {
      inputs.write(header);
      targets.write(header);
      Batch batch;
      for (int64_t first = 0; first < count; first += at_once) {
        make_batch(task, split, first, std::min(at_once, count - first), seq_len, num_threads(), batch);
        write_ids(inputs, batch.inputs);
        write_ids(targets, batch.targets);
      }
    });
  });
}

Split parse_split(const std::string& name) {
  if (name == "train") return Split::train;
  if (name == "validation") return Split::validation;
  if (name == "test") return Split::test;
  throw ConfigError(fmt::format("--split must be train, validation or test, got {}", margay::quoted(name)));
}

int run(const Arguments& arguments) {
  std::string name, folder, split_name = "train";
  std::vector<std::string> overrides;
  int64_t count = 0;
  std::optional<int64_t> seed;
  Device device;  // examples are made on the CPU: taken so that all verbs can be called alike
  CommandLine line(
      "gen", "Writes examples of a task: inputs.npy and targets.npy, both int32 [N,L]; target -100 = not scored.");
  line.argument("TASK", name, "a name of `margay list tasks`");
  line.arguments("task.key=value", overrides, "the task's configuration, as task.seq_len=128");
  line.option("--count N", count, 1, "examples; fewer are the first ones of more", true);
  line.seed([&](int64_t value) { seed = value; }, "task.seed [123]");
  line.option("--out DIR", folder, "the folder to write into", true);
  line.option("--split NAME", split_name, "train, validation or test: of disjoint examples [train]");
  line.device_and_threads(device);
  line.example("margay gen mqar --count 1000 --seed 7 --out data", "");
  line.example("margay gen ar task.form=pairs task.seq_len=128 --count 8 --out data", "");
  if (!line.parse(arguments)) return 0;

  Config config;
  config.task.name = name;
  for (const std::string& assignment : overrides) {
    if (!assignment.starts_with("task.")) {
      throw ConfigError(
          fmt::format("the keys of gen start with task., as task.seq_len=128, got {}", margay::quoted(assignment)));
    }
    apply_override(config, assignment);
  }
  if (seed) config.task.seed = *seed;
  const Split split = parse_split(split_name);
  (split == Split::train ? config.task.train_examples : config.task.test_examples) = count;
  const auto task = make_task(config.task);
  if (task->size(split) < count) {
    throw ConfigError(
        fmt::format("--count must be at most {}, the examples of this split, got {}", task->size(split), count));
  }
  make_folders(folder);
  write_examples(*task, split, count, folder);
  return 0;
}

}  // namespace

extern const Verb kGen;
constinit const Verb kGen = {"gen", "write examples of a task to .npy files", run};

}  // namespace margay::cli
