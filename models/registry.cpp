#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "engine/error.h"
#include "engine/names.h"
#include "models/attention.h"
#include "models/backbone.h"
#include "models/base_conv.h"
#include "models/based.h"
#include "models/cat.h"
#include "models/delta_net.h"
#include "models/gpt_neox.h"
#include "models/h3.h"
#include "models/hyena.h"
#include "models/lcat.h"
#include "models/lincat.h"
#include "models/linear_attention.h"
#include "models/mamba.h"
#include "models/mamba2.h"
#include "models/retention.h"
#include "models/rwkv.h"
#include "models/s4d.h"
#include "models/zoology.h"

namespace margay {
namespace {

template <class Factory>
struct Entry {
  std::string_view name;
  Factory make;
};

using MixerFactory = std::unique_ptr<Mixer> (*)(const ModelConfig&, int64_t, const Scope&);
using BackboneFactory = std::unique_ptr<Backbone> (*)(const ModelConfig&, const Scope&);

// A new mixer or backbone is added here, and nowhere else.
constexpr std::array kMixers{
    Entry<MixerFactory>{"attention", make_attention},
    Entry<MixerFactory>{"base_conv", make_base_conv},
    Entry<MixerFactory>{"based", make_based},
    Entry<MixerFactory>{"cat", make_cat},
    Entry<MixerFactory>{"delta_net", make_delta_net},
    Entry<MixerFactory>{"gated_delta_net", make_gated_delta_net},
    Entry<MixerFactory>{"gla", make_gla},
    Entry<MixerFactory>{"h3", make_h3},
    Entry<MixerFactory>{"hyena", make_hyena},
    Entry<MixerFactory>{"lcat", make_lcat},
    Entry<MixerFactory>{"linear_attention", make_linear_attention},
    Entry<MixerFactory>{"lincat", make_lincat},
    Entry<MixerFactory>{"mamba", make_mamba},
    Entry<MixerFactory>{"mamba2", make_mamba2},
    Entry<MixerFactory>{"retnet", make_retnet},
    Entry<MixerFactory>{"rwkv", make_rwkv},
    Entry<MixerFactory>{"s4d", make_s4d},
};
constexpr std::array kBackbones{Entry<BackboneFactory>{"gpt_neox", make_gpt_neox},
                                Entry<BackboneFactory>{"zoology", make_zoology}};

template <class Entries>
auto find(const Entries& entries, std::string_view key, std::string_view name) {
  for (const auto& entry : entries)
    if (entry.name == name) return entry.make;
  std::vector<std::string_view> names;
  for (const auto& entry : entries) names.push_back(entry.name);
  throw ConfigError(fmt::format("{} must be one of {}, got \"{}\" (nearest: {})", key, fmt::join(names, ", "), name,
                                nearest_name(name, names)));
}

}  // namespace

std::unique_ptr<Mixer> make_mixer(const ModelConfig& config, int64_t layer, const Scope& scope) {
  return find(kMixers, "model.mixer", config.mixer_of(layer))(config, layer, scope);
}

std::vector<std::string> mixer_names() {
  std::vector<std::string> names;
  for (const auto& entry : kMixers) names.emplace_back(entry.name);
  std::sort(names.begin(), names.end());
  return names;
}

std::unique_ptr<Backbone> make_backbone(const ModelConfig& config, const Scope& scope) {
  return find(kBackbones, "model.backbone", config.backbone)(config, scope);
}

}  // namespace margay
