#pragma once
#include <cstdint>
#include <string>

namespace margay::test {

/// A shape and options that causal_attention is tested with.
struct AttentionCase {
  int64_t B, H, Lq, Lk, dh, window = 0;
  bool beta = false;
  double dropout = 0;
};

inline std::string title(const AttentionCase& c) {
  return "B " + std::to_string(c.B) + ", H " + std::to_string(c.H) + ", Lq " + std::to_string(c.Lq) + ", Lk " +
         std::to_string(c.Lk) + ", dh " + std::to_string(c.dh) + ", window " + std::to_string(c.window) +
         (c.beta ? ", beta" : "") + (c.dropout > 0 ? ", dropout" : "");
}

}  // namespace margay::test
