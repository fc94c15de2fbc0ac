// Every mixer with its options: logits and gradients against the reference model, step mode against the whole
// sequence, causality to the bit.

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <numeric>

#include "engine/autograd.h"
#include "engine/error.h"
#include "models/language_model.h"
#include "ops/view.h"
#include "tests/models/reference_model.h"
#include "tests/models/small_model.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

struct Case {
  std::string name;
  std::function<void(ModelConfig&)> change;
};

// The linear-attention mixers: every feature map, alone and behind every front end of CAT.
void add_linear_cases(std::vector<Case>& list) {
  const std::vector<std::string> maps{"elu1", "taylor2", "softmax", "identity"};
  size_t next = 0;
  const auto add = [&](const std::string& name, const char* mixer, const std::function<void(ModelConfig&)>& change) {
    const std::string map = maps[next++ % maps.size()];
    list.push_back({name + ", " + map, [=](ModelConfig& c) {
                      c.mixer = {mixer}, c.lincat.feature_map = map;
                      change(c);
                    }});
  };
  for (size_t i = 0; i < maps.size(); ++i) add("linear_attention", "linear_attention", [](ModelConfig&) {});
  add("linear_attention, rope, 2 layers", "linear_attention",
      [](ModelConfig& c) { c.position = "rope", c.n_layers = 2; });
  for (const char* site : {"post", "input"})
    for (const char* sharing : {"depthwise", "per_head", "shared"})
      for (const char* norm : {"none", "l2_input", "l2_head"})
        add(std::string("lincat, ") + site + ", " + sharing + ", " + norm, "lincat",
            [=](ModelConfig& c) { c.cat.conv_site = site, c.cat.conv_sharing = sharing, c.cat.qk_norm = norm; });
  for (size_t i = 0; i < maps.size(); ++i)
    add("lincat, bias, rope, l2_head", "lincat", [](ModelConfig& c) {
      c.cat.conv_bias = true, c.cat.conv_on = "qk", c.position = "rope", c.cat.qk_norm = "l2_head";
    });
  list.push_back({"based", [](ModelConfig& c) { c.mixer = {"based"}, c.based.feature_dim = 3; }});
  list.push_back({"based, one head, rope ignored",
                  [](ModelConfig& c) { c.mixer = {"based"}, c.n_heads = 1, c.position = "rope", c.yarn_scale = 2; }});
  list.push_back({"windowed attention and based, 3 layers", [](ModelConfig& c) {
                    c.mixer = {"attention", "based"}, c.attention.window = 4, c.n_layers = 3;
                  }});
}

// Landmark CAT: every gate with all and some blocks, every kind of filter, and every norm in front of it.
void add_landmark_cases(std::vector<Case>& list) {
  const std::vector<std::string> gates{"grouped", "additive", "none"};
  const auto add = [&](const std::string& name, const std::function<void(ModelConfig&)>& change) {
    list.push_back({"lcat, " + name, [=](ModelConfig& c) {
                      c.mixer = {"lcat"}, c.lcat.block_size = 3, c.lcat.top_k = 2;
                      change(c);
                    }});
  };
  for (const std::string& gate : gates)
    for (const int64_t top_k : {0, 1, 2, 9})
      add(gate + ", top_k " + std::to_string(top_k), [=](ModelConfig& c) {
        c.lcat.gate = gate, c.lcat.top_k = top_k, c.lcat.landmark_query = top_k != 1, c.lcat.landmark_key = top_k != 2;
      });
  for (const char* sharing : {"shared", "per_head"})
    for (const int64_t size : {1, 4, 5, 20})  // 20 is longer than all that is taken
      add(std::string(sharing) + " filter, blocks of " + std::to_string(size), [=](ModelConfig& c) {
        c.lcat.landmark_sharing = sharing, c.lcat.landmark_key = size > 1, c.lcat.block_size = size, c.n_layers = 2;
      });
  size_t next = 0;
  for (const char* site : {"post", "input"})
    for (const char* norm : {"none", "l2_input", "l2_head"}) {
      const std::string gate = gates[next++ % gates.size()];
      add(std::string(site) + ", " + norm + ", " + gate, [=](ModelConfig& c) {
        c.cat.conv_site = site, c.cat.conv_sharing = "per_head", c.cat.qk_norm = norm, c.lcat.gate = gate;
      });
    }
  for (const char* norm : {"none", "l2_head"})
    add(std::string("rope, yarn, ") + norm, [=](ModelConfig& c) {
      c.cat.qk_norm = norm, c.position = "rope", c.yarn_scale = 4, c.lcat.landmark_query = c.lcat.landmark_key = true;
    });
  list.push_back({"attention and lcat", [](ModelConfig& c) {
                    c.mixer = {"attention", "lcat"}, c.n_layers = 3, c.mlp = "gelu", c.lcat.block_size = 4;
                  }});
}

void add_delta_cases(std::vector<Case>& list) {
  for (const char* mixer : {"delta_net", "gated_delta_net", "gla", "retnet"}) {
    list.push_back({mixer, [=](ModelConfig& c) { c.mixer = {mixer}; }});
    list.push_back({std::string(mixer) + ", one head, rope ignored, 2 layers, gelu", [=](ModelConfig& c) {
                      c.mixer = {mixer}, c.n_heads = 1, c.n_layers = 2, c.position = "rope", c.mlp = "gelu";
                    }});
  }
  list.push_back({"gla and attention", [](ModelConfig& c) { c.mixer = {"gla", "attention"}, c.n_layers = 3; }});
}

void add_neox_cases(std::vector<Case>& list) {
  const auto neox = [](ModelConfig& c) { c.backbone = "gpt_neox", c.mixer = {"attention"}; };
  for (const char* position : {"none", "learned", "rope"})
    for (const char* mixer : {"attention", "cat"})
      list.push_back({std::string("gpt_neox, ") + mixer + ", " + position, [=](ModelConfig& c) {
                        neox(c), c.mixer = {mixer}, c.position = position, c.n_layers = 2, c.rope_fraction = 0.5;
                      }});
  list.push_back({"gpt_neox, yarn, other sizes", [=](ModelConfig& c) {
                    neox(c), c.position = "rope", c.yarn_scale = 4, c.n_heads = 3, c.mlp_ratio = 1.5;
                    c.attention.window = 4, c.max_seq_len = 8;
                  }});
  list.push_back(
      {"gpt_neox, yarn without positions, l2_head", [=](ModelConfig& c) {
         neox(c), c.mixer = {"cat", "attention"}, c.yarn_scale = 8, c.cat.qk_norm = "l2_head", c.n_layers = 3;
       }});
  for (const char* site : {"post", "input"})
    for (const char* sharing : {"depthwise", "per_head", "shared"})
      for (const char* norm : {"none", "l2_input", "l2_head"})
        list.push_back({std::string("gpt_neox, cat, ") + site + ", " + sharing + ", " + norm, [=](ModelConfig& c) {
                          neox(c), c.mixer = {"cat"}, c.n_heads = 3, c.cat.conv_site = site, c.cat.qk_norm = norm;
                          c.cat.conv_sharing = sharing, c.cat.conv_bias = norm != std::string("l2_input");
                        }});
  list.push_back({"gpt_neox, cat on k, rope, one head", [=](ModelConfig& c) {
                    neox(c), c.mixer = {"cat"}, c.cat.conv_on = "k", c.cat.conv_width = 21, c.position = "rope";
                    c.n_heads = 1;
                  }});
}

// Every value of every option at least once, and the combinations in which options meet.
std::vector<Case> cases() {
  std::vector<Case> list;
  add_linear_cases(list);
  add_landmark_cases(list);
  add_delta_cases(list);
  add_neox_cases(list);
  const auto attention = [](ModelConfig& c) { c.mixer = {"attention"}; };
  list.push_back({"attention", attention});
  list.push_back({"attention, learned positions, 2 layers, identity",
                  [=](ModelConfig& c) { attention(c), c.position = "learned", c.n_layers = 2, c.mlp = "identity"; }});
  list.push_back({"attention, rope, 3 layers, gelu, untied", [=](ModelConfig& c) {
                    attention(c), c.position = "rope", c.n_layers = 3, c.mlp = "gelu", c.tie_embeddings = false;
                  }});
  list.push_back({"attention, partial rope, yarn, swiglu", [=](ModelConfig& c) {
                    attention(c), c.position = "rope", c.rope_fraction = 0.7, c.yarn_scale = 4, c.mlp = "swiglu";
                  }});
  list.push_back({"attention, window", [=](ModelConfig& c) { attention(c), c.attention.window = 3; }});
  list.push_back({"attention and cat", [](ModelConfig& c) { c.mixer = {"attention", "cat"}, c.n_layers = 3; }});
  for (const char* site : {"post", "input"})
    for (const char* sharing : {"depthwise", "per_head", "shared"})
      for (const char* norm : {"none", "l2_input", "l2_head"})
        list.push_back({std::string("cat, ") + site + ", " + sharing + ", " + norm, [=](ModelConfig& c) {
                          c.cat.conv_site = site, c.cat.conv_sharing = sharing, c.cat.qk_norm = norm;
                        }});
  for (const char* on : {"q", "k", "v", "qv", "kq"})
    list.push_back({std::string("cat on ") + on, [=](ModelConfig& c) { c.cat.conv_on = on, c.cat.conv_bias = true; }});
  for (const char* site : {"post", "input"})
    for (const char* sharing : {"depthwise", "per_head", "shared"})
      list.push_back({std::string("cat with bias, ") + site + ", " + sharing, [=](ModelConfig& c) {
                        c.cat.conv_site = site, c.cat.conv_sharing = sharing, c.cat.conv_bias = true;
                        c.cat.qk_norm = "l2_input", c.position = "rope";
                      }});
  list.push_back({"cat, width 1", [](ModelConfig& c) { c.cat.conv_width = 1; }});
  list.push_back(
      {"cat, width 21, identity", [](ModelConfig& c) { c.cat.conv_width = 21, c.cat.conv_init = "identity"; }});
  list.push_back(
      {"cat, yarn without positions, l2_head", [](ModelConfig& c) { c.yarn_scale = 8, c.cat.qk_norm = "l2_head"; }});
  list.push_back({"mamba", [](ModelConfig& c) { c.mixer = {"mamba"}, c.n_layers = 2; }});
  list.push_back({"mamba, final rms norm, untied",
                  [](ModelConfig& c) { c.mixer = {"mamba"}, c.final_norm = "rms_norm", c.tie_embeddings = false; }});
  list.push_back({"mamba, other sizes, no mlp even if asked for", [](ModelConfig& c) {
                    c.mixer = {"mamba"}, c.mlp = "gelu", c.d_model = 20;
                    c.mamba.expand = 3, c.mamba.d_state = 5, c.mamba.d_conv = 3;
                  }});
  list.push_back({"mamba below attention with an mlp", [](ModelConfig& c) {
                    c.mixer = {"mamba", "attention"}, c.n_layers = 2, c.mlp = "gelu", c.mamba.d_conv = 1;
                  }});
  list.push_back({"mamba2", [](ModelConfig& c) { c.mixer = {"mamba2"}, c.n_layers = 2, c.mamba.head_dim = 8; }});
  list.push_back({"mamba2, other sizes, small chunks", [](ModelConfig& c) {
                    c.mixer = {"mamba2"}, c.mamba.expand = 3, c.mamba.d_state = 5, c.mamba.d_conv = 3;
                    c.mamba.head_dim = 36, c.mamba.chunk = 4;
                  }});
  list.push_back({"rwkv", [](ModelConfig& c) { c.mixer = {"rwkv"}, c.n_layers = 2; }});
  list.push_back({"rwkv and attention, gelu", [](ModelConfig& c) {
                    c.mixer = {"rwkv", "attention"}, c.n_layers = 3, c.mlp = "gelu", c.position = "learned";
                  }});
  const auto long_conv = [](ModelConfig& c) {
    c.s4d.d_state = 6, c.h3.d_state = 4, c.hyena.filter_width = 5, c.n_layers = 2;
  };
  list.push_back({"base_conv", [=](ModelConfig& c) { long_conv(c), c.mixer = {"base_conv"}; }});
  list.push_back({"base_conv, other widths, and cat", [=](ModelConfig& c) {
                    long_conv(c), c.mixer = {"base_conv", "base_conv", "cat"}, c.n_layers = 4;
                    c.base_conv.kernel_size = {-1, 5};
                  }});
  list.push_back({"hyena", [=](ModelConfig& c) { long_conv(c), c.mixer = {"hyena"}; }});
  list.push_back({"hyena, more features, longer than its filter", [=](ModelConfig& c) {
                    long_conv(c), c.mixer = {"hyena"}, c.hyena.filter_embed = 7, c.max_seq_len = 6;
                  }});
  for (const char* init : {"lin", "inv", "real"})
    for (const char* discretization : {"zoh", "bilinear"})
      list.push_back({std::string("s4d, ") + init + ", " + discretization, [=](ModelConfig& c) {
                        long_conv(c), c.mixer = {"s4d"}, c.s4d.init = init, c.s4d.discretization = discretization;
                      }});
  for (const int64_t head_dim : {1, 2, 3})
    list.push_back({"h3, heads of " + std::to_string(head_dim),
                    [=](ModelConfig& c) { long_conv(c), c.mixer = {"h3"}, c.h3.head_dim = head_dim; }});
  return list;
}

template <class Check>
void for_every_case(const Check& check) {
  for (const Case& entry : cases()) {
    CAPTURE(entry.name);
    ModelConfig config = small_config();
    entry.change(config);
    check(config);
  }
}

// The labels are those of the positions `labelled` of nine, in a list of `count` rows.
void check_gradients(const ModelConfig& config, const std::vector<size_t>& labelled, int64_t count) {
  const int64_t length = 9;
  const LanguageModel model(config, 7, DType::f64);
  spread(model);
  const auto ids = some_ids(length, config.vocab_size, 3);
  const auto words = some_ids(length, config.vocab_size, 4);
  std::vector<int32_t> targets(words.size(), -100), rows(static_cast<size_t>(count), -1),
      row_targets(rows.size(), -100);
  for (size_t n = 0; n < labelled.size(); ++n) {
    rows[n] = static_cast<int32_t>(labelled[n]);
    row_targets[n] = targets[labelled[n]] = words[labelled[n]];
  }
  const Tensor loss =
      model.loss(from_values(ids, {1, length}), from_values(rows, {count}), from_values(row_targets, {count})).loss;
  loss.backward();
  ReferenceModel reference(config, ReferenceModel::values_of(model.parameters()));
  CHECK(loss.item() == doctest::Approx(reference.loss(ids, targets)).epsilon(1e-10));
  for (const Parameter& p : model.parameters()) {
    CAPTURE(p.name);
    const std::vector<double> gradient = p.value.grad().defined()
                                             ? p.value.grad().to_vector<double>()
                                             : std::vector<double>(static_cast<size_t>(p.value.numel()));
    std::vector<double>& values = reference.parameters()[p.name];
    // Along one direction that no element of the gradient is left out of.
    const std::vector<double> start = values;
    std::vector<double> direction(values.size());
    RandomStream random(5, hash_name(p.name));
    for (double& d : direction) d = (2 * random.uniform64() - 1) / std::sqrt(static_cast<double>(values.size()));
    const auto loss_at = [&](double step) {
      for (size_t i = 0; i < values.size(); ++i) values[i] = start[i] + step * direction[i];
      return reference.loss(ids, targets);
    };
    const double step = 1e-5, slope = (loss_at(step) - loss_at(-step)) / (2 * step);
    values = start;
    const double expected = std::inner_product(gradient.begin(), gradient.end(), direction.begin(), 0.0);
    CHECK(expected == doctest::Approx(slope).epsilon(1e-5).scale(1e-3));
  }
}

}  // namespace

TEST_CASE("models: logits equal the reference, in f64 and f32") {
  for_every_case([](const ModelConfig& config) {
    for (const int64_t length : {1, 2, 13}) {
      const auto ids = some_ids(length, config.vocab_size, 3);
      for (const DType dtype : {DType::f64, DType::f32}) {
        const LanguageModel model(config, 7, dtype);
        spread(model);
        const ReferenceModel reference(config, ReferenceModel::values_of(model.parameters()));
        std::vector<double> expected;
        for (const auto& row : reference.logits(ids)) expected.insert(expected.end(), row.begin(), row.end());
        const Tensor got = model.logits(from_values(ids, {1, length}));
        CHECK(difference_relative_to_max(got, from_values(expected, {1, length, config.vocab_size}),
                                         dtype == DType::f64 ? 1e-11 : 2e-5) == "");
      }
    }
  });
}

TEST_CASE("models: gradients of the loss equal central differences of the reference") {
  for_every_case([](const ModelConfig& config) { check_gradients(config, {1, 2, 3, 5, 6, 7, 8}, 11); });
}

TEST_CASE("models: so they do where few rows are read of the last layer") {
  for_every_case([](const ModelConfig& config) { check_gradients(config, {3, 8}, 4); });
}

TEST_CASE("models: token by token gives what the whole sequence gives") {
  for_every_case([](const ModelConfig& config) {
    const NoGrad no_grad;
    const LanguageModel model(config, 11, DType::f64);
    spread(model);
    const int64_t length = 15;
    std::vector<int32_t> ids = some_ids(length, config.vocab_size, 8);
    const auto second = some_ids(length, config.vocab_size, 9);
    ids.insert(ids.end(), second.begin(), second.end());
    const Tensor batch = from_values(ids, {2, length});
    const Tensor expected = model.logits(batch);
    // A first stretch at once, then a stretch shorter than a filter, then single tokens.
    ModelState state = model.start(2);
    int64_t seen = 0;
    for (const int64_t stretch : {5, 2, 1, 1, 1, 1, 1, 1, 1, 1}) {
      const Tensor logits = model.step(slice(batch, 1, seen, seen + stretch), state);
      seen += stretch;
      CHECK(difference_relative_to_max(logits, select(expected, 1, seen - 1), 1e-11) == "");
    }
    CHECK(seen == length);
    CHECK(state.position == length);
  });
}

TEST_CASE("models: a changed token changes no bit before it") {
  for_every_case([](const ModelConfig& config) {
    const NoGrad no_grad;
    const LanguageModel model(config, 11);
    spread(model);
    const int64_t length = 16;
    std::vector<int32_t> ids = some_ids(length, config.vocab_size, 8);
    const Tensor before = model.logits(from_values(ids, {1, length}));
    for (const int64_t t : {1, 7, 15}) {
      std::vector<int32_t> changed = ids;
      changed[static_cast<size_t>(t)] = (changed[static_cast<size_t>(t)] + 5) % static_cast<int32_t>(config.vocab_size);
      const Tensor after = model.logits(from_values(changed, {1, length}));
      CHECK(same_bits(slice(before, 1, 0, t), slice(after, 1, 0, t)));
      CHECK_FALSE(same_bits(slice(before, 1, t, length), slice(after, 1, t, length)));
    }
  });
}

TEST_CASE("models: shared and per-head filters commute with the projection") {
  for (const char* sharing : {"shared", "per_head"}) {
    ModelConfig config = small_config();
    config.cat.conv_sharing = sharing;
    const LanguageModel post(config, 3, DType::f64);
    spread(post);
    config.cat.conv_site = "input";
    const LanguageModel input(config, 3, DType::f64);
    for (size_t i = 0; i < post.parameters().size(); ++i) {
      const NoGrad no_grad;
      const Parameter& p = post.parameters()[i];
      // Only without projection biases: they are filtered at one site and not at the other.
      if (p.name.find("_proj.bias") != std::string::npos) p.value.fill(0);
      input.parameters()[i].value.copy_from(p.value);
    }
    const Tensor ids = from_values(some_ids(13, config.vocab_size, 2), {1, 13});
    CHECK(difference_relative_to_max(input.logits(ids), post.logits(ids), 1e-12) == "");
  }
}

TEST_CASE("models: initial weights depend on seed and name only") {
  ModelConfig config = small_config();
  const LanguageModel one(config, 5), again(config, 5), other(config, 5 + (uint64_t{1} << 32));
  config.n_layers = 2;
  const LanguageModel deeper(config, 5);
  for (size_t i = 0; i < one.parameters().size(); ++i) {
    const Parameter& p = one.parameters()[i];
    CHECK(same_bits(p.value, again.parameters()[i].value));
    if (p.name.find("q_proj.weight") == std::string::npos) continue;
    CHECK_FALSE(same_bits(p.value, other.parameters()[i].value));
    for (const Parameter& q : deeper.parameters())
      if (q.name == p.name) CHECK(same_bits(p.value, q.value));
  }
  const auto std_of = [](const LanguageModel& model, const std::string& name) {
    for (const Parameter& p : model.parameters()) {
      if (p.name != name) continue;
      double squares = 0;
      const auto values = p.value.to_vector<float>();
      for (const float v : values) squares += v * v;
      return std::sqrt(squares / static_cast<double>(values.size()));
    }
    FAIL("no parameter " << name);
    return 0.0;
  };
  config.d_model = 64;
  const LanguageModel wide(config, 5);
  CHECK(std_of(wide, "blocks.0.mixer.q_proj.weight") == doctest::Approx(0.02).epsilon(0.05));
  CHECK(std_of(wide, "blocks.0.mixer.out_proj.weight") == doctest::Approx(0.01).epsilon(0.05));
}

TEST_CASE("models: shapes of parameters need no values") {
  for_every_case([](const ModelConfig& config) {
    const LanguageModel model(config, 5);
    const auto shapes = parameter_shapes(config);
    REQUIRE(shapes.size() == model.parameters().size());
    for (size_t i = 0; i < shapes.size(); ++i) {
      CHECK(shapes[i].name == model.parameters()[i].name);
      CHECK(shapes[i].shape == model.parameters()[i].value.shape());
    }
  });
  ModelConfig huge = small_config();  // 2^57 bytes
  huge.backbone = "gpt_neox";
  huge.d_model = 1 << 20;
  huge.mlp_ratio = 1000;
  huge.vocab_size = (int64_t{1} << 31) - 1;
  CHECK(parameter_shapes(huge).front().shape == Shape{huge.vocab_size, huge.d_model});
}

TEST_CASE("models: dropout acts in training only, and the same way twice") {
  ModelConfig config = small_config();
  config.dropout_embed = config.dropout_residual = config.dropout_attention = 0.3;
  config.n_layers = 2;
  const LanguageModel model(config, 5);
  spread(model);
  const Tensor ids = from_values(some_ids(13, config.vocab_size, 2), {1, 13});
  const Tensor rows = from_values<int32_t>({3, 9}, {2}), targets = from_values<int32_t>({1, 2}, {2});
  const auto loss = [&](int64_t step) {
    return model.loss(ids, rows, targets, step < 0 ? Tensor() : from_values<int64_t>({17, step}, {2})).loss.item();
  };
  CHECK(loss(-1) == loss(-1));
  CHECK(loss(4) == loss(4));
  CHECK(loss(4) != loss(5));
  CHECK(loss(4) != loss(-1));
}

TEST_CASE("models: what does not fit is refused") {
  ModelConfig config = small_config();
  const LanguageModel model(config, 5);
  CHECK_THROWS_AS(model.logits(from_values<int32_t>({0, 23}, {1, 2})), OpError);
  CHECK_THROWS_AS(model.logits(from_values<int32_t>({0, -1}, {1, 2})), OpError);
  CHECK_NOTHROW(model.logits(zeros({1, 40}, DType::i32)));
  config.position = "learned";
  CHECK_THROWS_AS(LanguageModel(config, 5).logits(zeros({1, 17}, DType::i32)), ConfigError);
  config.mixer = {"gla"};
  config.n_heads = 4;
  CHECK_THROWS_WITH_AS(LanguageModel(config, 5), doctest::Contains("model.d_model must be a multiple of"), ConfigError);
  config = small_config();
  config.mixer = {"mamba2"};
  CHECK_THROWS_WITH_AS(LanguageModel(config, 5),
                       "model.mamba.head_dim must divide model.mamba.expand * model.d_model = 24, got 64", ConfigError);
  config.mixer = {"attentoin"};
  CHECK_THROWS_WITH_AS(LanguageModel(config, 5), doctest::Contains("attention"), ConfigError);
}

}  // namespace margay::test
