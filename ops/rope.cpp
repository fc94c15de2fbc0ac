#include "ops/rope.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/launch.h"

namespace margay {
namespace {

const Op op{"rope", [] {
              const auto sample = [](const char* name, const Shape& shape, int64_t rotary_dims, int64_t first) {
                return Sample{.inputs = {real(shape)},
                              .call =
                                  [=](const Tensors& in) {
                                    const RopeTable table = rope_table(first, shape[2], rotary_dims, 100, 1, 64,
                                                                       in[0].dtype(), in[0].device());
                                    return Tensors{rope(in[0], table)};
                                  },
                              .name = name};
              };
              return Samples{sample("all dims", {2, 3, 5, 8}, 8, 0),  sample("some dims", {1, 2, 7, 9}, 6, 3),
                             sample("one pair", {1, 1, 1, 2}, 2, 5),  sample("no pairs", {2, 1, 3, 4}, 0, 0),
                             sample("no tokens", {2, 2, 0, 4}, 4, 0), sample("no heads", {2, 0, 3, 4}, 4, 0)};
            }};

// theta_i of every pair.
std::vector<double> angles_per_position(int64_t rotary_dims, double base, double scale, int64_t train_length) {
  constexpr double two_pi = 6.283185307179586476925286766559;
  const auto r = static_cast<double>(rotary_dims);
  // The (fractional) pair that turns n times within the training length.
  const auto pair_turning = [&](double n) {
    return r * std::log(static_cast<double>(train_length) / (two_pi * n)) / (2 * std::log(base));
  };
  const double low = std::max(std::floor(pair_turning(32)), 0.0);
  const double high = std::min(std::ceil(pair_turning(1)), r - 1);
  const double width = std::max(high - low, 0.001);
  std::vector<double> angles;
  for (int64_t i = 0; i < rotary_dims / 2; ++i) {
    const double theta = std::pow(base, -2 * static_cast<double>(i) / r);
    const double stretched = std::clamp((static_cast<double>(i) - low) / width, 0.0, 1.0);
    angles.push_back(scale == 1 ? theta : (1 - stretched) * theta + stretched * theta / scale);
  }
  return angles;
}

Tensor rotate(const Tensor& x, const RopeTable& table, bool back) {
  const Tensor input = with_contiguous_rows(x), cos = table.cos.contiguous(), sin = table.sin.contiguous();
  const int64_t B = x.dim(0), H = x.dim(1), L = x.dim(2), dh = x.dim(3);
  const bool side_by_side = input.strides()[1] < input.strides()[2];
  const Tensor y = side_by_side ? heads_view(empty({B, L, 1, H, dh}, x.dtype(), x.device())) : empty_like(x);
  op.launch<kernels::Rope>(x, [&]<class T>(kernels::Rope<T>& a) {
    a = {.x = input.strided<T>().data,
         .cos = cos.data<T>(),
         .sin = sin.data<T>(),
         .y = y.strided<T>().data,
         .x_strides = head_strides(input),
         .y_strides = head_strides(y),
         .B = B,
         .H = H,
         .L = L,
         .dh = dh,
         .pairs = cos.dim(1),
         .back = back};
  });
  return y;
}

}  // namespace

RopeTable rope_table(int64_t first_position, int64_t length, int64_t rotary_dims, double base, double yarn_scale,
                     int64_t train_length, DType dtype, Device device) {
  const auto require = [](bool ok, const char* arg, const char* wanted, auto got) {
    if (!ok) throw OpError("rope_table", arg, wanted, fmt::format("{}", got));
  };
  require(first_position >= 0, "first_position", "0 or more", first_position);
  require(length >= 0, "length", "0 or more", length);
  require(rotary_dims >= 0 && rotary_dims % 2 == 0, "rotary_dims", "even and 0 or more", rotary_dims);
  require(base > 1, "base", "above 1", base);
  require(yarn_scale > 0, "yarn_scale", "positive", yarn_scale);
  require(train_length > 0, "train_length", "positive", train_length);
  require(is_float(dtype), "dtype", "a float dtype", name_of(dtype));
  const std::vector<double> angles = angles_per_position(rotary_dims, base, yarn_scale, train_length);
  std::vector<double> cosines, sines;
  for (int64_t position = first_position; position < first_position + length; ++position) {
    for (const double angle : angles) {
      cosines.push_back(std::cos(static_cast<double>(position) * angle));
      sines.push_back(std::sin(static_cast<double>(position) * angle));
    }
  }
  const Shape shape{length, rotary_dims / 2};
  return {from_values(cosines, shape).to(dtype).to(device), from_values(sines, shape).to(dtype).to(device)};
}

Tensor rope(const Tensor& x, const RopeTable& table) {
  op.require_float("x", x);
  op.require(x.ndim() == 4, "x", x, "[B,H,L,dh]");
  op.require_like("table.cos", table.cos, "x", x);
  op.require(table.cos.ndim() == 2 && table.cos.dim(0) == x.dim(2) && 2 * table.cos.dim(1) <= x.dim(3), "table.cos",
             table.cos, "[L, r/2] with r <= dh for x {}", x);
  op.require_like("table.sin", table.sin, "x", x);
  op.require(table.sin.shape() == table.cos.shape(), "table.sin", table.sin, "of the shape of table.cos {}", table.cos);
  return op.record(
      rotate(x, table, false), {x},
      [cos = Saved(table.cos), sin = Saved(table.sin)](const Tensor& dy) {
        return Tensors{rotate(dy, {cos, sin}, true)};
      },
      CotangentLayout::strided);
}

}  // namespace margay
