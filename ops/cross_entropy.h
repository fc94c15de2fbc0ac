#pragma once
#include <cstdint>

#include "engine/op.h"

namespace margay {

/// What a cross-entropy gives.
struct CrossEntropy {
  Tensor loss;    // mean of nll over the labelled rows, 0-d; 0 if there are none
  Tensor nll;     // [R], 0 where ignored
  Tensor argmax;  // i32 [R], the likeliest class (the lowest of equals), -1 where ignored; no gradient
};

/// Negative log-likelihood of softmax(logits): nll = log(sum over v of exp(logits[r, v])) - logits[r, targets[r]].
/// logits [R, V], targets i32 [R]; rows whose target is -100 are ignored. Gradients flow through loss and nll:
/// dlogits = (softmax - onehot) * (dloss / labelled rows + dnll). Throws OpError for other targets outside [0, V).
CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets);

namespace kernels {

/// `rows` [n] lists the labelled rows; row_max and inv_sum [n] are the largest logit m of each of them, and 1 over the
/// sum of exp(logit - m).
template <class T>
struct CrossEntropyFwd {
  const T* logits;
  const int32_t *targets, *rows;
  T *loss, *nll;
  acc_t<T>*row_max, *inv_sum;
  int32_t* argmax;
  int64_t R, V, n;
};
/// dloss or dnll may be null, not both.
template <class T>
struct CrossEntropyBwd {
  const T* logits;
  const int32_t *targets, *rows;
  const acc_t<T>*row_max, *inv_sum;
  const T *dloss, *dnll;
  T* dlogits;
  int64_t R, V, n;
};
template <class T>
void run(Cpu, const CrossEntropyFwd<T>&);
template <class T>
void run(Cuda, const CrossEntropyFwd<T>&);
template <class T>
void run(Cpu, const CrossEntropyBwd<T>&);
template <class T>
void run(Cuda, const CrossEntropyBwd<T>&);

}  // namespace kernels
}  // namespace margay
