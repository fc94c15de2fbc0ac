// One CAT layer with weights written down instead of learned: docs/theory.md explains why each of them solves its task
// at every length. No residual, no head: the prediction is the token whose embedding is nearest to the layer's output.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "engine/autograd.h"
#include "models/mixer.h"
#include "ops/argmax.h"
#include "ops/conv1d_causal.h"
#include "ops/embedding.h"
#include "ops/l2_normalize.h"
#include "ops/matmul.h"
#include "ops/view.h"
#include "tasks/batch.h"
#include "tasks/registry.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

/// A mixer "cat" whose parameters are all zero until they are set.
class Layer {
 public:
  explicit Layer(const ModelConfig& config) {
    config_ = config;
    mixer_ = make_mixer(config, 0, Scope(parameters_, 0, DType::f32, {}));
    for (const Parameter& p : parameters_) p.value.fill(0);
    for (const char* name : {"v_proj.weight", "out_proj.weight"}) set_identity(name, 1);
  }

  void set(const std::string& name, const std::vector<double>& values) {
    Tensor p = named(name);
    p.copy_from(from_values(values, p.shape()));
  }
  void set_identity(const std::string& name, double scale) {
    const int64_t d = config_.d_model;
    std::vector<double> values(static_cast<size_t>(d * d), 0.0);
    for (int64_t i = 0; i < d; ++i) values[static_cast<size_t>(i * (d + 1))] = scale;
    set(name, values);
  }
  Tensor operator()(const Tensor& x) const { return mixer_->forward(x, {}, nullptr); }

 private:
  Tensor named(const std::string& name) {
    for (const Parameter& p : parameters_)
      if (p.name == name) return p.value;
    FAIL("no parameter " << name);
    return {};
  }

  ModelConfig config_;
  Parameters parameters_;
  std::unique_ptr<Mixer> mixer_;
};

/// Unit rows in random directions.
Tensor random_embeddings(int64_t vocabulary, int64_t d) {
  return l2_normalize(random_uniform({vocabulary, d}, 11, -1, 1, DType::f32));
}

ModelConfig one_layer(int64_t d, int64_t width, const char* on) {
  ModelConfig config;
  config.mixer = {"cat"};
  config.d_model = d;
  config.cat.conv_site = "input";
  config.cat.conv_sharing = "shared";
  config.cat.conv_width = width;
  config.cat.conv_on = on;
  return config;
}

Batch examples(const TaskConfig& config, int64_t seq_len, int64_t count) {
  Batch batch;
  make_batch(*make_task(config), Split::test, 0, count, seq_len, 2, batch);
  return batch;
}

/// Predictions that are not the label, among the scored positions of the batch.
int64_t mistakes(const Layer& layer, const Tensor& embeddings, const Batch& batch) {
  const NoGrad no_grad;
  const Tensor x = embedding(embeddings, from_values(batch.inputs, {batch.examples, batch.columns}));
  const Tensor rows =
      take_rows(reshape(layer(x), {-1, embeddings.dim(1)}),
                from_values(std::span(batch.rows).first(static_cast<size_t>(batch.labels)), {batch.labels}));
  const auto predicted = argmax(matmul(rows, transpose(embeddings, 0, 1)), -1).to_vector<int32_t>();
  int64_t wrong = 0;
  for (size_t i = 0; i < predicted.size(); ++i) wrong += predicted[i] != batch.targets[batch.rows[i]];
  return wrong;
}

/// The smallest 1 - <norm(u), norm(u')> over different N-grams of the sequences, u = sum_i taps[i] E[token i back].
double gap_between_ngrams(const Tensor& embeddings, const std::vector<double>& taps, const Batch& batch) {
  const NoGrad no_grad;
  std::map<std::vector<int32_t>, int32_t> rows;  // each N-gram once, with its flat position
  const auto n = static_cast<int64_t>(taps.size());
  for (int64_t i = 0; i < batch.examples * batch.columns; ++i)
    if (i % batch.columns + 1 >= n)
      rows.emplace(std::vector<int32_t>(&batch.inputs[i + 1 - n], &batch.inputs[i] + 1), static_cast<int32_t>(i));
  std::vector<int32_t> positions;
  for (const auto& [gram, position] : rows) positions.push_back(position);
  if (positions.size() > 3000) positions.resize(3000);
  const Tensor x = embedding(embeddings, from_values(batch.inputs, {batch.examples, batch.columns}));
  const Tensor filtered = conv1d_causal(x, from_values(std::vector<float>(taps.begin(), taps.end()), {n}), {}, {});
  const Tensor u = l2_normalize(take_rows(reshape(filtered, {-1, embeddings.dim(1)}),
                                          from_values(positions, {static_cast<int64_t>(positions.size())})));
  const auto products = matmul(u, transpose(u, 0, 1)).to_vector<float>();
  const size_t count = positions.size();
  float largest = -1;
  for (size_t i = 0; i < count; ++i)
    for (size_t j = 0; j < i; ++j) largest = std::max(largest, products[i * count + j]);
  return 1 - static_cast<double>(largest);
}

/// Theorem 1: queries norm(F * x), keys the same one token later, values x, sharpness beta.
Layer ngram_layer(int64_t d, const std::vector<double>& taps, double beta) {
  ModelConfig config = one_layer(d, static_cast<int64_t>(taps.size()) + 1, "qkv");
  config.cat.qk_norm = "l2_input";
  Layer layer(config);
  std::vector<double> now = taps, delayed = taps, token(taps.size() + 1, 0.0);
  now.push_back(0);
  delayed.insert(delayed.begin(), 0);
  token[0] = 1;
  layer.set("conv_q.weight", now);
  layer.set("conv_k.weight", delayed);
  layer.set("conv_v.weight", token);
  layer.set_identity("q_proj.weight", beta * std::sqrt(static_cast<double>(d)));
  layer.set_identity("k_proj.weight", 1);
  return layer;
}

constexpr int64_t kLengths[] = {16, 64, 256, 1024, 4096};

}  // namespace

TEST_CASE("constructions: one CAT layer solves N-gram associative recall at every length (theorem 1)") {
  constexpr int64_t kWidth = 64, kVocabulary = 256;
  const Tensor embeddings = random_embeddings(kVocabulary, kWidth);
  for (const std::vector<double>& taps :
       std::vector<std::vector<double>>{{1}, {1, 0.5}, {1, -0.9}, {1, 0.7, 0.4}, {1, -0.85, -1.4}}) {
    CAPTURE(taps.size());
    for (const char* form : {"free", "pairs"}) {
      CAPTURE(form);
      TaskConfig task;
      task.name = "nar";
      task.form = form;
      task.n_gram = static_cast<int64_t>(taps.size());
      task.vocab_size = kVocabulary;
      // One token has few keys: longer sequences hold more tokens than there are.
      task.seq_len = taps.size() == 1 ? 256 : 4096;
      for (const int64_t length : kLengths) {
        if (length > task.seq_len) continue;
        CAPTURE(length);
        const Batch batch = examples(task, length, 4);
        const double gap = gap_between_ngrams(embeddings, taps, batch);
        const double beta = std::log(1000.0 * static_cast<double>(length)) / gap;
        CHECK(beta < 3000);
        CHECK(mistakes(ngram_layer(kWidth, taps, beta), embeddings, batch) == 0);
      }
    }
  }
}

TEST_CASE("constructions: keys of a few shared tokens in many orders are told apart") {
  constexpr int64_t kWidth = 64;
  const Tensor embeddings = random_embeddings(512, kWidth);
  for (const std::vector<double>& taps : std::vector<std::vector<double>>{{1, -0.9}, {1, 0.7, 0.4}}) {
    TaskConfig task;
    task.name = "mqnar";
    task.n_gram = static_cast<int64_t>(taps.size());
    task.vocab_size = 512;
    task.num_kv_pairs = 12;
    task.seq_len = 256;
    const Batch batch = examples(task, 256, 16);
    const double beta = std::log(1000.0 * 256) / gap_between_ngrams(embeddings, taps, batch);
    CHECK(mistakes(ngram_layer(kWidth, taps, beta), embeddings, batch) == 0);
    // A filter that cannot tell the order of its tokens fails: the oracle of this test can say no.
    const std::vector<double> blind(taps.size(), 1.0);
    CHECK(mistakes(ngram_layer(kWidth, blind, beta), embeddings, batch) > 0);
  }
}

TEST_CASE("constructions: a filter of two taps on the keys solves associative recall (corollary of theorem 1)") {
  constexpr int64_t kWidth = 64, kVocabulary = 8192;
  const Tensor embeddings = random_embeddings(kVocabulary, kWidth);
  const double beta = std::log(1e4) / (1 - 0.72);  // unit rows: the largest product of two is 0.71 here
  Layer layer(one_layer(kWidth, 2, "k"));
  layer.set("conv_k.weight", {0, 1});
  layer.set_identity("q_proj.weight", beta * std::sqrt(static_cast<double>(kWidth)));
  layer.set_identity("k_proj.weight", 1);
  for (const auto& [length, pairs] : {std::pair{64, 4}, {128, 8}, {256, 16}, {512, 64}}) {
    TaskConfig task;
    task.seq_len = length;
    task.num_kv_pairs = pairs;
    CHECK(mistakes(layer, embeddings, examples(task, length, 16)) == 0);
  }
  TaskConfig task;
  task.name = "ar";
  task.form = "pairs";
  task.seq_len = 4096;
  for (const int64_t length : kLengths) CHECK(mistakes(layer, embeddings, examples(task, length, 8)) == 0);
}

namespace {

constexpr int64_t kSignals = 16, kNoise = kSignals, kSpecial = kSignals + 1, kCopyWidth = kSignals + 2;
constexpr int64_t kLongest = 4096 + kSignals;  // a prompt and what follows it

Tensor one_hot_embeddings() {
  std::vector<float> rows(static_cast<size_t>(kCopyWidth * kCopyWidth), 0.0f);
  for (int64_t i = 0; i < kCopyWidth; ++i) rows[static_cast<size_t>(i * (kCopyWidth + 1))] = 1;
  return from_values(rows, {kCopyWidth, kCopyWidth});
}

TaskConfig copying(bool unique) {
  TaskConfig task;
  task.name = "selective_copy";
  task.seq_len = 4096;
  task.n_signals = kSignals;
  task.unique = unique;
  return task;
}

/// Distinct signals: the query counts how recently each signal was seen, and the key of the longest ago wins. A copied
/// signal was seen again, so that the earliest one that is left is next.
Layer recency_layer() {
  const double longest = kLongest, decay = 1 - 1 / longest, beta = std::exp(1.0) * longest * std::log(100 * longest);
  const double scale = beta * std::sqrt(static_cast<double>(kCopyWidth));
  Layer layer(one_layer(kCopyWidth, kLongest, "q"));
  std::vector<double> taps(kLongest), weight(kCopyWidth * kCopyWidth, 0.0), bias(kCopyWidth, 0.0);
  for (size_t j = 0; j < taps.size(); ++j) taps[j] = std::pow(decay, static_cast<double>(j));
  for (size_t s = 0; s < kSignals; ++s) weight[s * (kCopyWidth + 1)] = -scale;
  bias[kNoise] = bias[kSpecial] = -10 * scale;  // never copied
  layer.set("conv_q.weight", taps);
  layer.set("q_proj.weight", weight);
  layer.set("q_proj.bias", bias);
  layer.set_identity("k_proj.weight", 1);
  return layer;
}

/// Signals that may repeat: keys count the signals up to them, queries the tokens since the special one; unit vectors
/// of (count, A) agree best where the counts do.
Layer rank_layer() {
  constexpr double kA = 16, kMost = 16;
  constexpr auto kChannels = static_cast<size_t>(kCopyWidth), kTaps = static_cast<size_t>(kLongest);
  ModelConfig config = one_layer(kCopyWidth, kLongest, "qk");
  config.cat.conv_sharing = "depthwise";
  config.cat.qk_norm = "l2_head";
  Layer layer(config);
  std::vector<double> conv_q(kChannels * kTaps, 0.0), conv_k = conv_q;
  for (size_t j = 0; j < kTaps; ++j) conv_q[kSpecial * kTaps + j] = static_cast<double>(j);
  for (size_t s = 0; s < kSignals; ++s) std::fill_n(&conv_k[s * kTaps], kTaps, 1.0);
  conv_k[kNoise * kTaps] = conv_k[kSpecial * kTaps] = 1;
  std::vector<double> q(kChannels * kChannels, 0.0), k = q, q_bias(kChannels, 0.0), k_bias = q_bias;
  q[kSpecial] = 1;  // row 0: tokens since the special one, + 1
  q_bias[0] = 1;
  for (size_t s = 0; s < kSignals; ++s) k[s] = 1;          // row 0: signals so far
  k[kChannels + kNoise] = k[kChannels + kSpecial] = -1e6;  // row 1: what is no signal points away from every query
  q_bias[1] = k_bias[1] = kA;
  layer.set("conv_q.weight", conv_q);
  layer.set("conv_k.weight", conv_k);
  layer.set("q_proj.weight", q);
  layer.set("q_proj.bias", q_bias);
  layer.set("k_proj.weight", k);
  layer.set("k_proj.bias", k_bias);
  const double square = kA * kA + (kMost + 1) * (kMost + 1);
  layer.set("beta", {2 * std::log(100.0 * kLongest) * square * square / (kA * kA)});
  return layer;
}

}  // namespace

TEST_CASE("constructions: one CAT layer copies distinct signals at every length") {
  const Layer layer = recency_layer();
  for (const int64_t length : kLengths) {
    CAPTURE(length);
    CHECK(mistakes(layer, one_hot_embeddings(), examples(copying(true), length, 4)) == 0);
  }
}

TEST_CASE("constructions: one CAT layer copies signals that repeat at every length") {
  const Layer layer = rank_layer();
  for (const int64_t length : kLengths) {
    CAPTURE(length);
    CHECK(mistakes(layer, one_hot_embeddings(), examples(copying(false), length, 4)) == 0);
  }
}

}  // namespace margay::test
