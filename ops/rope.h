#pragma once
#include "engine/op.h"
#include "ops/heads.h"

namespace margay {

/// Cosines and sines of the rotation angles of some positions: [L, r/2], a row per position.
struct RopeTable {
  Tensor cos, sin;
};

/// The table of the positions first_position ... first_position + length - 1 for r = rotary_dims dims. Position p
/// rotates pair i by p theta_i, theta_i = base^(-2i/r); angles are computed in f64.
///
/// yarn_scale s != 1 stretches the context by interpolation by parts (Peng et al. 2023, arXiv:2309.00071, section
/// 3.2): pairs that turn at least 32 times within train_length keep theta_i, those that turn less than once get
/// theta_i / s, and between them it is blended linearly in i. The temperature of that paper is not in the table.
/// Throws OpError unless rotary_dims is even, base > 1, yarn_scale and train_length are positive, the rest is not
/// negative, and dtype is a float.
RopeTable rope_table(int64_t first_position, int64_t length, int64_t rotary_dims, double base, double yarn_scale,
                     int64_t train_length, DType dtype, Device device);

/// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of the first r dims of every head, half-split: with
/// a = x[i], b = x[i + r/2], the result holds a cos - b sin and b cos + a sin; dims from r on are copied.
/// x [B,H,L,dh], table [L, r/2] with r <= dh -> [B,H,L,dh], with the memory order of x if heads lie side by side in it,
/// else row-major. x may be a view (copied only if dh is not the innermost axis in memory). The gradient is rotated
/// back. Throws OpError if the table does not fit x.
Tensor rope(const Tensor& x, const RopeTable& table);

namespace kernels {

template <class T>
struct Rope {
  const T *x, *cos, *sin;
  T* y;
  HeadStrides x_strides, y_strides;
  int64_t B, H, L, dh;
  int64_t pairs;  // r / 2
  bool back;      // rotate by minus the angle
};
template <class T>
void run(Cpu, const Rope<T>&);
template <class T>
void run(Cuda, const Rope<T>&);

}  // namespace kernels
}  // namespace margay
