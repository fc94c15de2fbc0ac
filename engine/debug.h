#pragma once
#include <string>

#include "engine/tensor.h"

namespace margay::debug {

/// The values of a tensor as text, in NumPy's nesting; at most `limit` elements an axis, the middle ones left out.
std::string to_text(const Tensor& tensor, int64_t limit = 6);

/// The recorded graph behind `root` in Graphviz's DOT language, inputs above results.
std::string dot(const Tensor& root);

/// Number of recorded ops (leaves not counted) behind `root`.
int64_t count_nodes(const Tensor& root);

}  // namespace margay::debug
