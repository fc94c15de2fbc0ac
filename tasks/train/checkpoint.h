#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace margay {

/// A test of the model: after which step, and how it went.
struct TestResult {
  int64_t step = 0;
  double loss = 0, accuracy = 0;
};

/// Where training stands. Everything random in it is a pure function of the seeds in config.toml and of `step`.
struct TrainState {
  int64_t seed = 0;
  int64_t step = 0;
  int64_t epoch = 0;                    ///< whole passes over the training examples
  int64_t next_example = 0;             ///< of the epoch; where there are no epochs, of all
  int64_t tokens = 0;                   ///< trained on
  double seconds = 0;                   ///< of the run, evaluation and checkpoints included
  double train_seconds = 0;             ///< of the training steps alone
  double train_loss = 0;                ///< of the last batch
  std::optional<TestResult> test = {};  ///< the last one
};

/// Writes state.json with the digests of the files that lie in the checkpoint's folder already.
void save_state(const std::string& checkpoint, const TrainState& state);
/// Reads it. Throws DataError where it is damaged, or where a file does not have the digest that it gives.
TrainState load_state(const std::string& checkpoint);

/// The checkpoints of a run: folders checkpoints/step-N, and the symbolic link `checkpoint` to the newest.
class CheckpointStore {
 public:
  explicit CheckpointStore(std::string run_folder);

  /// The newest checkpoint's folder; none where the run has no checkpoint yet.
  std::optional<std::string> newest() const;
  /// Adds the checkpoint of a step; `write` puts its files into the folder that it is given. The link moves once all of
  /// it is on the disk: a kill at any instant leaves a whole checkpoint. Then all but the two newest are removed. On an
  /// error, and where `write` throws, the old checkpoint stays and nothing else.
  void add(int64_t step, const std::function<void(const std::string& folder)>& write);

 private:
  std::string link() const;
  std::string folder_of(int64_t step) const;
  void remove_old(int64_t newest) const;

  std::string run_folder_, checkpoints_;
};

}  // namespace margay
