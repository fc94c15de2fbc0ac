#include "ops/view.h"

#include "engine/op.h"

namespace margay {
namespace {

template <class Call>
Sample sample(const SampleInput& input, Call call, const char* name = "") {
  return {.inputs = {input}, .call = [call](const Tensors& in) { return Tensors{call(in[0])}; }, .name = name};
}

const Op reshape_op{
    "reshape", [] {
      const auto rows = [](const Tensor& x) { return reshape(x, {4, -1}); };
      return Samples{
          sample(real({2, 3, 4}), rows),
          sample(real({2, 4, 3}), [](const Tensor& x) { return reshape(transpose(x, 1, 2), {4, 6}); }, "copy"),
          sample(real({6, 4}), [](const Tensor& x) { return reshape(x, {2, 1, 3, 2, 2, 1}); }, "axes split"),
          sample(real({1}), [](const Tensor& x) { return reshape(x, {}); }, "to 0-d"),
          sample(real({3, 0, 4}), [](const Tensor& x) { return reshape(x, {0, 5}); }, "empty"),
          sample(ids({8, 2}, 0, 9), rows, "integers"),
          sample(mask({8, 2}), rows, "booleans")};
    }};

const Op flatten_op{"flatten", [] {
                      const auto middle = [](const Tensor& x) { return flatten(x, 1, -2); };
                      return Samples{sample(real({2, 3, 4}), [](const Tensor& x) { return flatten(x); }),
                                     sample(real({2, 3, 2, 3}), middle, "inner axes"),
                                     sample(real({}), [](const Tensor& x) { return flatten(x); }, "0-d"),
                                     sample(real({2, 0, 3, 2}), middle, "empty"),
                                     sample(ids({2, 2, 2, 3}, 0, 9), middle, "integers")};
                    }};

const Op squeeze_op{"squeeze", [] {
                      const auto call = [](const Tensor& x) { return squeeze(x, -2); };
                      return Samples{sample(real({3, 1, 4}), call), sample(real({1, 1}), call, "size 1"),
                                     sample(real({0, 1, 2}), call, "empty"), sample(mask({2, 1, 3}), call, "booleans")};
                    }};

const Op unsqueeze_op{"unsqueeze", [] {
                        const auto last = [](const Tensor& x) { return unsqueeze(x, -1); };
                        return Samples{sample(real({3, 4}), [](const Tensor& x) { return unsqueeze(x, 1); }),
                                       sample(real({3, 4}), last, "last"), sample(real({}), last, "0-d"),
                                       sample(real({0, 2}), last, "empty"), sample(ids({2, 3}, 0, 9), last, "integers")};
                      }};

const Op transpose_op{"transpose", [] {
                        const auto call = [](const Tensor& x) { return transpose(x, 0, -1); };
                        return Samples{sample(real({2, 3, 4}), call), sample(real({1, 5}), call, "size 1"),
                                       sample(real({3}), call, "with itself"), sample(real({3, 0}), call, "empty"),
                                       sample(ids({2, 3}, 0, 9), call, "integers")};
                      }};

const Op permute_op{"permute", [] {
                      const auto call = [](const Tensor& x) { return permute(x, {2, 0, -2}); };
                      return Samples{sample(real({2, 3, 4}), call), sample(real({1, 3, 1}), call, "size 1"),
                                     sample(real({}), [](const Tensor& x) { return permute(x, {}); }, "0-d"),
                                     sample(real({0, 3, 2}), call, "empty"), sample(mask({2, 3, 2}), call, "booleans")};
                    }};

const Op slice_op{
    "slice", [] {
      const auto inner = [](const Tensor& x) { return slice(x, 1, 1, -1); };
      return Samples{sample(real({3, 5, 2}), inner),
                     sample(real({7, 2}), [](const Tensor& x) { return slice(x, 0, 1, 7, 3); }, "steps"),
                     sample(real({4, 3}), [](const Tensor& x) { return slice(x, -1, 3, 3); }, "nothing"),
                     sample(real({0, 4}), inner, "empty"),
                     sample({.inputs = {real({4, 6})},
                             .call = [](const Tensors& in) {
                               return Tensors{slice(in[0], 1, 0, 4), slice(in[0], 1, 2, 6), slice(in[0], 0, 0, 4, 2)};
                             },
                             .name = "overlapping slices of one tensor"}),
                     sample(ids({3, 5}, 0, 9), inner, "integers")};
    }};

const Op select_op{"select", [] {
                     const auto call = [](const Tensor& x) { return select(x, 1, -1); };
                     return Samples{sample(real({3, 5, 2}), call), sample(real({2, 1}), call, "size 1"),
                                    sample(real({4}), [](const Tensor& x) { return select(x, 0, 2); }, "to 0-d"),
                                    sample(real({0, 4}), call, "empty"), sample(mask({3, 5}), call, "booleans")};
                   }};

const Op expand_op{"expand", [] {
                     const auto call = [](const Tensor& x) { return expand(x, {2, -1, 4, 3}); };
                     return Samples{sample(real({5, 1, 3}), call), sample(real({5, 4, 1}), call, "last axis"),
                                    sample(real({}), [](const Tensor& x) { return expand(x, {2, 3}); }, "0-d"),
                                    sample(real({3, 1}), [](const Tensor& x) { return expand(x, {3, 0}); }, "to nothing"),
                                    sample(ids({5, 1, 3}, 0, 9), call, "integers")};
                   }};
}  // namespace
}  // namespace margay
