#include "tasks/config.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "engine/error.h"
#include "engine/rng.h"
#include "tests/support/temp_dir.h"

using namespace margay;

namespace {

/// The message of the ConfigError that a call throws; empty if it throws none.
template <class Call>
std::string config_error(const Call& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    CAPTURE(std::string(error.what()));
    CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos);
    return error.what();
  }
  return {};
}
std::string parse_error(std::string_view toml) {
  return config_error([&] { parse_config(toml, "test.toml"); });
}
std::string override_error(std::string_view assignment) {
  Config config;
  return config_error([&] { apply_override(config, assignment); });
}
bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// A configuration in which every key differs from its default, with awkward numbers.
Config unusual_config() {
  Config config;
  RandomStream random(7, 1);
  for (const ConfigKey& key : keys_of(config)) {
    const ConfigRule& rule = key.rule;
    if (auto* const* field = std::get_if<bool*>(&key.field)) **field = !**field;
    if (auto* const* field = std::get_if<int64_t*>(&key.field)) **field += 2;
    if (auto* const* field = std::get_if<double*>(&key.field)) {
      **field = rule.low + (std::min(rule.high, 1e6) - rule.low) * random.uniform64();
    }
    if (auto* const* field = std::get_if<std::string*>(&key.field)) {
      **field = !rule.letters.empty() ? "vk" : rule.choices.empty() ? "a \"b\"\\\n\t#é" : rule.choices.back();
    }
    if (auto* const* field = std::get_if<std::vector<std::string>*>(&key.field)) **field = {"attention", "cat"};
    if (auto* const* field = std::get_if<std::vector<int64_t>*>(&key.field)) **field = {5, -1, 7};
    if (auto* const* field = std::get_if<std::array<double, 2>*>(&key.field)) **field = {1.0 / 3, 0.1 + 0.2};
  }
  return config;
}

constexpr std::string_view kContract = R"(
[model]
backbone = "zoology"
mixer = "cat"
d_model = 64
n_layers = 1
n_heads = 1
vocab_size = 8192
max_seq_len = 64
position = "none"
rope_fraction = 1.0
rope_base = 10000.0
yarn_scale = 1.0
mlp = "none"
mlp_ratio = 4.0
tie_embeddings = true
final_norm = "layer_norm"
dropout_embed = 0.0
dropout_residual = 0.0
dropout_attention = 0.0
[model.cat]
conv_width = 3
conv_site = "post"
conv_sharing = "depthwise"
conv_on = "qkv"
conv_bias = false
conv_init = "uniform"
qk_norm = "none"
[model.lincat]
feature_map = "elu1"
[model.lcat]
block_size = 16
top_k = 1
landmark_sharing = "shared"
landmark_query = false
landmark_key = false
gate = "grouped"
[model.mamba]
expand = 2
d_state = 16
d_conv = 4
head_dim = 64
chunk = 256
[model.s4d]
d_state = 64
init = "lin"
discretization = "zoh"
[model.hyena]
filter_width = 64
filter_embed = 3
[model.h3]
d_state = 64
head_dim = 2
[model.base_conv]
kernel_size = [3, -1]
[model.based]
feature_dim = 8
[model.attention]
window = 0
[task]
name = "mqar"
vocab_size = 8192
seq_len = 64
min_seq_len = 0
train_examples = 100000
test_examples = 3000
seed = 123
num_kv_pairs = 4
power_a = 0.01
random_non_queries = false
n_gram = 2
form = "free"
n_signals = 16
n_copy = 16
unique = false
path = ""
tokenizer = "bytes"
stride = 0
[train]
seed = 123
optimizer = "adamw"
lr = 1e-3
betas = [0.9, 0.999]
eps = 1e-8
weight_decay = 0.1
decay_groups = "standard"
schedule = "cosine"
warmup_steps = 0
min_lr_ratio = 0.0
epochs = 64
steps = 0
batch_size = 64
grad_accumulation = 1
grad_clip = 0.0
precision = "f32"
cuda_graph = true
shuffle = false
eval_every = 0
stop_accuracy = 0.0
checkpoint_every = 0
)";

}  // namespace

TEST_CASE("config: the defaults are the documented ones, and every key is documented here") {
  const std::string defaults = to_toml(Config());
  CHECK(to_toml(parse_config("", "empty")) == defaults);
  CHECK(to_toml(parse_config(kContract, "contract")) == defaults);
  std::istringstream lines{std::string(kContract)};
  size_t documented = 0;
  for (std::string line; std::getline(lines, line);) documented += contains(line, " = ");
  Config config;
  CHECK(documented == keys_of(config).size());
}

TEST_CASE("config: every key survives writing and reading, to the bit") {
  Config config = unusual_config(), defaults;
  const std::string toml = to_toml(config);
  Config read = parse_config(toml, "test.toml");
  CHECK(to_toml(read) == toml);
  const auto written = keys_of(config), back = keys_of(read), original = keys_of(defaults);
  for (size_t i = 0; i < written.size(); ++i) {
    CAPTURE(written[i].name);
    const bool same = std::visit([&](auto* field) { return *field == **std::get_if<decltype(field)>(&back[i].field); },
                                 written[i].field);
    CHECK(same);
    if (written[i].rule.choices.size() != 1) CHECK(written[i].value() != original[i].value());
  }
}

TEST_CASE("config: real numbers keep all bits") {
  RandomStream random(3, 9);
  for (int i = 0; i < 300; ++i) {
    const double lr = std::ldexp(random.uniform64(), static_cast<int>(random.below(2000)) - 1020);
    Config config;
    config.train.lr = lr;
    CHECK(parse_config(to_toml(config), "t").train.lr == lr);
  }
}

TEST_CASE("config: every key can be overridden") {
  Config unusual = unusual_config(), config;
  for (const ConfigKey& key : keys_of(unusual)) apply_override(config, fmt::format("{}={}", key.name, key.value()));
  CHECK(to_toml(config) == to_toml(unusual));
}

TEST_CASE("config: an override's value is TOML where it parses, else a bare string") {
  Config config;
  apply_override(config, "model.mixer=attention");
  CHECK(config.model.mixer == std::vector<std::string>{"attention"});
  apply_override(config, R"(model.mixer=["base_conv", "based"])");
  CHECK(config.model.mixer == std::vector<std::string>{"base_conv", "based"});
  apply_override(config, "model.base_conv.kernel_size=[3, -1]");
  apply_override(config, " model.d_model = 0x80 ");
  CHECK(config.model.d_model == 128);
  apply_override(config, "train.lr=1");
  CHECK(config.train.lr == 1.0);
  apply_override(config, "task.path=../data/it's #1.txt");
  CHECK(config.task.path == "../data/it's #1.txt");
  apply_override(config, "task.path=a=b");
  CHECK(config.task.path == "a=b");
  apply_override(config, "task.path=");
  CHECK(config.task.path.empty());
  apply_override(config, "task.path=\"quoted\"");
  CHECK(config.task.path == "quoted");
  apply_override(config, "model.cat={conv_width = 4, conv_site = \"input\"}");
  CHECK(config.model.cat.conv_width == 4);
  CHECK(config.model.cat.conv_site == "input");
  apply_override(config, "task.path=données/\xe2\x82\xac.txt");
  CHECK(config.task.path == "données/\xe2\x82\xac.txt");
  apply_override(config, "task.path=1\nother = 2");  // never a second key
  CHECK(config.task.path == "1\nother = 2");
}

TEST_CASE("config: a bad override throws and changes nothing") {
  Config config;
  for (const char* bad : {"model.d_model",
                          "=3",
                          "",
                          "model.d_model=",
                          "model.d_model=64.0",
                          "model.d_model=big",
                          "model.d_model=0",
                          "model.d_model=99999999999999999999",
                          "model={d_model = 9, mlp = 3}",
                          "model=3",
                          "model.mixer=[]",
                          "model.mixer=[1]",
                          "train.betas=[0.9]",
                          "task.path=2024",
                          "train.betas=[0.9, 1.0]",
                          "train.lr=nan",
                          "train.lr=inf",
                          "train.lr=-1",
                          "model.cat.conv_on=qq",
                          "model.cat.conv_on=x",
                          "task.path=\xff",
                          "\xff=1",
                          "task.path=1979-05-27",
                          "train.steps=true"}) {
    CAPTURE(bad);
    CHECK_FALSE(config_error([&] { apply_override(config, bad); }).empty());
    CHECK(to_toml(config) == to_toml(Config()));
  }
  CHECK_FALSE(config_error([&] { apply_override(config, std::string_view("task.path=a\0b", 13)); }).empty());
}

TEST_CASE("config: an unknown name is answered with the nearest valid one") {
  CHECK(override_error("model.d_modl=3") == "unknown key \"model.d_modl\"; the nearest is \"model.d_model\"");
  CHECK(contains(override_error("d_model=3"), "\"model.d_model\""));
  CHECK(contains(override_error("learning_rate=3"), "nearest is \""));
  CHECK(contains(override_error("lr=3"), "\"train.lr\""));
  CHECK(contains(override_error("conv_widht=3"), "\"model.cat.conv_width\""));
  CHECK(contains(override_error("modle.d_model=3"), "\"model.d_model\""));
  CHECK(contains(override_error("model.conv_width=3"), "\"model.cat.conv_width\""));
  CHECK(contains(override_error("model.d_model.x=3"), "nearest is \""));
  CHECK(parse_error("[train]\nlr = 1.0\n[trian]\nlr = 2.0\n") ==
        "test.toml:3: unknown table \"trian\"; the nearest is \"train\"");
  CHECK(contains(parse_error("[model]\n[model.cta]\n"), "\"model.cat\""));
  CHECK(contains(parse_error("[train]\n\nbatchsize = 3\n"), "test.toml:3: "));
  CHECK(contains(override_error("model.position=ropee"), "the nearest is \"rope\""));
  CHECK(contains(override_error("model.mlp=gleu"), "the nearest is \"gelu\""));
}

TEST_CASE("config: a wrong type or range names the key, what was wanted and what came") {
  CHECK(parse_error("[model]\nd_model = \"big\"\n") ==
        "test.toml:2: model.d_model must be an integer in [1, 1048576], got the string \"big\"");
  CHECK(override_error("train.lr=-0.5") == "train.lr must be a number of at least 0, got -0.5");
  CHECK(override_error("model.dropout_embed=1.0") == "model.dropout_embed must be a number in [0, 1), got 1.0");
  CHECK(override_error("model.tie_embeddings=1") == "model.tie_embeddings must be true or false, got the integer 1");
  CHECK(parse_error("model = 3") == "test.toml:1: model must be a table, got the integer 3");
  CHECK(contains(parse_error("[[model]]\nd_model = 3"), "model must be a table, got a list of 1"));
  CHECK(contains(parse_error("[model.d_model]\nx = 1"), "model.d_model must be an integer"));
  Config config;
  for (const ConfigKey& key : keys_of(config)) {  // no key takes a date
    const std::string error = override_error(fmt::format("{}=1979-05-27", key.name));
    CHECK(error == fmt::format("{} must be {}, got a date or time", key.name, key.wanted()));
    if (!std::holds_alternative<std::string*>(key.field) && !key.rule.choices.empty()) FAIL("choices are for strings");
    if (std::isfinite(key.rule.low)) {
      CHECK_FALSE(override_error(fmt::format("{}={}", key.name, key.rule.low - 1)).empty());
      if (key.rule.above_low) CHECK_FALSE(override_error(fmt::format("{}={}", key.name, key.rule.low)).empty());
    }
    if (std::isfinite(key.rule.high)) {
      CHECK_FALSE(override_error(fmt::format("{}={}", key.name, key.rule.high + 1)).empty());
      if (key.rule.below_high) CHECK_FALSE(override_error(fmt::format("{}={}", key.name, key.rule.high)).empty());
    }
  }
}

TEST_CASE("config: text beyond ASCII") {
  CHECK(parse_config("\xef\xbb\xbf[task]\npath = \"\xc3\xa9\"  # \xe2\x82\xac\n", "t").task.path == "\xc3\xa9");
  CHECK(parse_config("[task]\npath = 'a\xf0\x9f\x98\x80'", "t").task.path == "a\xf0\x9f\x98\x80");
  CHECK(parse_config("[task]\npath = \"\\u00e9\"", "t").task.path == "\xc3\xa9");
  CHECK(contains(parse_error("[task]\n\"pfad\xc3\xa9\" = 1"), "\"task.pfad\xc3\xa9\""));
  CHECK(contains(parse_error("[model]\nd_model = \"\xc3\xa9\""), "got the string \"\xc3\xa9\""));
}

TEST_CASE("config: a syntax error names source and line") {
  CHECK(contains(parse_error("[model]\nd_model = 64\nn_layers = = 2\n"), "test.toml:3: "));
  CHECK(contains(parse_error("[model]\nd_model = 1\nd_model = 2\n"), "test.toml:3: "));
  CHECK(contains(parse_error("[model\n"), "test.toml:1: "));
}

TEST_CASE("config: hostile text is refused, not obeyed") {
  CHECK_FALSE(parse_error("x = " + std::string(60'000, '[')).empty());
  CHECK_FALSE(parse_error("x = " + std::string(5'000, '[') + std::string(5'000, ']')).empty());
  std::string inline_tables = "x = ";
  for (int i = 0; i < 10'000; ++i) inline_tables += "{a=";
  CHECK_FALSE(parse_error(inline_tables).empty());
  std::string dotted = "a";
  for (int i = 0; i < 30'000; ++i) dotted += ".a";
  CHECK(contains(parse_error(dotted + " = 1"), "dots"));
  CHECK(contains(parse_error("[" + dotted + "]"), "dots"));
  CHECK(contains(override_error("model={" + dotted + " = 1}"), "dots"));
  CHECK(contains(override_error("task.path=" + std::string(70'000, 'x')), "bytes"));
  std::string just_allowed = "model.a";
  for (int i = 0; i < 900; ++i) just_allowed += ".a";
  CHECK(contains(parse_error(just_allowed + " = 1"), "unknown table \"model.a\""));
  CHECK(contains(parse_error(std::string(100'000, ' ')), "at most 65536 bytes"));
  CHECK_FALSE(parse_error(std::string_view("[model]\0\nd_model = 2", 20)).empty());
  CHECK_FALSE(parse_error("[task]\npath = \"a\\u0000b\"\n").empty());
  CHECK(contains(parse_error("[model]\nd_model = \xff\xfe\n"), "test.toml:2: a configuration must be UTF-8 text"));
  for (const char* bad :
       {"\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x80", "\x80", "\xc3", "\xe2\x82"}) {
    CHECK(contains(parse_error(fmt::format("[task]\npath = \"{}\"", bad)), "UTF-8"));
  }
  for (const char* bad :
       {"[[=", "[[[1]]]", "[=", "x = \xc3\xa9", "x = 1\"\xc3\xa9\"", "\xc3\xa9 = 1", "x = [1 \xe3\x81\x82]"}) {
    CHECK(contains(parse_error(bad), "test.toml:1: "));  // undefined behaviour or a failed assertion in toml++
  }
  CHECK_FALSE(parse_error("[model]\nd_model = 9223372036854775808\n").empty());
  CHECK_FALSE(parse_error("[model]\nd_model = -9223372036854775808\n").empty());
  CHECK_FALSE(parse_error("\"a\\nb\" = 1\n").empty());
  CHECK_FALSE(parse_error("[train]\nlr = 1e999\n").empty());
  std::string many = "[model]\n";
  for (int i = 0; i < 5000; ++i) many += fmt::format("k{} = 1\n", i);
  CHECK(contains(parse_error(many), "unknown key"));
}

TEST_CASE("config: damaged text either parses or throws a one-line ConfigError") {
  const std::string toml = to_toml(unusual_config());
  RandomStream random(11, 0);
  int refused = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string damaged = toml;
    for (uint32_t edits = 1 + random.below(3); edits > 0; --edits) {
      const size_t at = random.below(static_cast<uint32_t>(damaged.size()));
      const uint32_t kind = random.below(3);
      if (kind == 0) damaged[at] = static_cast<char>(random.below(256));
      if (kind == 1) damaged.erase(at, 1 + random.below(20));
      if (kind == 2) damaged.insert(at, damaged.substr(random.below(static_cast<uint32_t>(damaged.size())), 12));
    }
    refused += !parse_error(damaged).empty();
  }
  CHECK(refused > 500);
  CHECK(refused < 1500);
}

TEST_CASE("config: a file that cannot be read is a DataError, a bad one a ConfigError with its name") {
  const test::TempDir dir;
  CHECK_THROWS_AS(load_config(dir.file("missing.toml")), DataError);
  CHECK_THROWS_AS(load_config(dir.file("")), DataError);  // a folder
  const std::string good = dir.write("good.toml", "[model]\nd_model = 32\n");
  CHECK(load_config(good).model.d_model == 32);
  CHECK(to_toml(load_config(dir.write("empty.toml", ""))) == to_toml(Config()));
  const std::string bad = dir.write("bad.toml", "[model]\nd_model = 32\nn_layer = 2\n");
  CHECK(config_error([&] { load_config(bad); }) ==
        fmt::format("{}:3: unknown key \"model.n_layer\"; the nearest is \"model.n_layers\"", bad));
  CHECK_THROWS_AS(load_config("/dev/zero"), ConfigError);
  dir.write("large.toml", "# " + std::string(70'000, 'x'));
  CHECK_THROWS_AS(load_config(dir.file("large.toml")), ConfigError);
}

TEST_CASE("config: sizes that do not fit are refused") {
  const auto model_error = [](std::initializer_list<const char*> overrides) {
    Config config;
    for (const char* assignment : overrides) apply_override(config, assignment);
    return config_error([&] { validate(config.model); });
  };
  CHECK(model_error({}).empty());
  CHECK(model_error({"model.d_model=48", "model.n_heads=3"}).empty());
  CHECK(contains(model_error({"model.n_heads=3"}), "model.n_heads must divide model.d_model = 64, got 3"));
  CHECK(contains(model_error({"model.mlp=gelu", "model.mlp_ratio=0.01"}), "model.mlp_ratio"));
  CHECK(contains(model_error({"model.base_conv.kernel_size=[3, 0]"}), "kernel_size"));
  CHECK(contains(model_error({"model.mixer=[\"attention\", \"cta\"]"}), "the nearest is \"cat\""));
  CHECK(model_error({"model.mixer=[\"attention\", \"cat\"]"}).empty());

  const auto error = [](std::initializer_list<const char*> overrides) {
    Config config;
    for (const char* assignment : overrides) apply_override(config, assignment);
    return config_error([&] { validate(config); });
  };
  CHECK(error({}).empty());
  CHECK(error({"model.vocab_size=9000"}).empty());
  CHECK(contains(error({"model.vocab_size=8191"}), "model.vocab_size must be at least the 8192 tokens"));
  CHECK(contains(error({"task.name=text", "task.path=x", "model.vocab_size=255"}), "256 tokens"));
  CHECK(contains(error({"task.name=text"}), "task.path"));
  CHECK(contains(error({"task.name=text", "task.path=x", "task.tokenizer="}), "task.tokenizer"));
  CHECK(contains(error({"task.name=text", "task.path=x", "task.stride=65"}), "task.stride"));
  CHECK(contains(error({"task.name=mqarr"}), "unknown task \"mqarr\"; the nearest is \"mqar\""));
  CHECK(contains(error({"task.num_kv_pairs=17"}), "task.num_kv_pairs"));
  CHECK(error({"task.num_kv_pairs=16"}).empty());
  CHECK(contains(error({"task.seq_len=63"}), "even"));
  CHECK(contains(error({"task.vocab_size=64"}), "task.vocab_size"));
  CHECK(error({"task.vocab_size=65"}).empty());
  CHECK(contains(error({"task.min_seq_len=15"}), "task.min_seq_len"));
  CHECK(contains(error({"task.min_seq_len=66"}), "task.min_seq_len"));
  CHECK(error({"task.min_seq_len=16"}).empty());
  CHECK(contains(error({"task.train_examples=0"}), "train.steps"));
  CHECK(error({"task.train_examples=0", "train.steps=1"}).empty());
  CHECK(error({"task.seq_len=128"}).empty());
  CHECK(contains(error({"task.seq_len=128", "model.position=learned"}), "model.max_seq_len"));
  CHECK(contains(error({"task.name=ar", "task.seq_len=2"}), "task.seq_len"));
  CHECK(contains(error({"task.name=ar", "task.form=pairs", "task.vocab_size=63"}), "task.vocab_size"));
  CHECK(error({"task.name=ar", "task.form=pairs", "task.vocab_size=64"}).empty());
}

TEST_CASE("config: a struct filled by hand is checked like a file") {
  ModelConfig model;
  model.mlp = "relu";
  CHECK_THROWS_AS(validate(model), ConfigError);
  TaskConfig task;
  task.power_a = 0;
  CHECK_THROWS_AS(validate(task), ConfigError);
  TrainConfig train;
  train.betas = {0.9, 1.0};
  CHECK_THROWS_AS(validate(train), ConfigError);
}

TEST_CASE("config: mixers are cycled over the layers") {
  ModelConfig model;
  CHECK(model.mixer_of(5) == "cat");
  model.mixer = {"base_conv", "based"};
  CHECK(model.mixer_of(0) == "base_conv");
  CHECK(model.mixer_of(3) == "based");
}
