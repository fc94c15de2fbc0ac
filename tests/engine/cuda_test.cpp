// The CUDA device against the CPU. Skipped, and counted as skipped, where there is no GPU.

#include <doctest/doctest.h>

#include <limits>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};

bool no_gpu() { return cuda_device_count() == 0; }

const std::vector<DType>& all_dtypes() {
  static const std::vector<DType> dtypes = {DType::f32, DType::f64, DType::bf16,
                                            DType::i32, DType::i64, DType::boolean};
  return dtypes;
}

}  // namespace

TEST_CASE("cuda: tensors travel to the GPU and back" * doctest::skip(no_gpu())) {
  for (const DType dtype : all_dtypes()) {
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{3, 5}, Shape{3, 1000, 1000}}) {  // up to several buffers
      const Tensor host = random_uniform(shape, 1, -5, 5).to(dtype);
      const Tensor there = host.to(kGpu);
      CHECK(there.device() == kGpu);
      CHECK(same_bits(there.to(Device{}), host));
      CHECK(same_bits(as_strided_copy(host).to(kGpu).to(Device{}), host));
      if (shape.numel() > 0) CHECK(same_bits(as_strided_copy(there).to(Device{}), host));
    }
  }
  CHECK(describe(zeros({2}, DType::f32, kGpu)) == "f32[2]@cuda");
}

TEST_CASE("cuda: fill and copy between all dtypes and strides are the CPU's" * doctest::skip(no_gpu())) {
  for (const DType from : all_dtypes()) {
    for (const DType to : all_dtypes()) {
      for (const bool strided : {false, true}) {
        CAPTURE(std::string(name_of(from)));
        CAPTURE(std::string(name_of(to)));
        const Tensor host = random_uniform({7, 3, 70}, 2, -300, 300).to(from);
        const Tensor there = strided ? as_strided_copy(host.to(kGpu)) : host.to(kGpu);
        CHECK(same_bits(there.to(to).to(Device{}), host.to(to)));
      }
    }
    const Tensor filled = as_strided_copy(zeros({7, 3}, from, kGpu));
    filled.fill(-2.5);
    CHECK(same_bits(filled.to(Device{}), full({7, 3}, -2.5, from)));
  }
  const double infinity = std::numeric_limits<double>::infinity();
  const Tensor extreme =
      from_values({infinity, -infinity, std::numeric_limits<double>::quiet_NaN(), 1e10, -1e19, 2.9}, {6});
  // Which NaN it is may differ.
  for (const DType to : all_dtypes()) CHECK(difference(extreme.to(kGpu).to(to).to(Device{}), extreme.to(to), 0) == "");
}

TEST_CASE("cuda: accumulate agrees with the CPU, and with itself bit for bit" * doctest::skip(no_gpu())) {
  struct Case {
    Shape to, from;
  };
  const std::vector<Case> cases = {
      {{4, 5}, {4, 5}},          {{5}, {4, 5}},           {{4, 1}, {4, 5}},         {{}, {4, 5}},
      {{3, 1, 2}, {2, 3, 4, 2}}, {{3}, {0, 3}},           {{0, 2}, {4, 0, 2}},      {{70}, {50000, 70}},
      {{1}, {1000000}},          {{130, 1}, {130, 9000}}, {{2, 1, 3}, {2, 9000, 3}}};
  for (const Case& c : cases) {
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
      for (const bool strided : {false, true}) {
        CAPTURE(to_string(c.to));
        CAPTURE(to_string(c.from));
        const Tensor start = random_uniform(c.to, 1).to(dtype), terms = random_uniform(c.from, 2).to(dtype);
        const Tensor expected = start.clone();
        cpu_backend().accumulate(expected.region(), terms.region());
        Tensor first;
        for (int i = 0; i < 2; ++i) {
          const Tensor to = start.to(kGpu), from = strided ? as_strided_copy(terms.to(kGpu)) : terms.to(kGpu);
          backend(kGpu).accumulate(to.region(), from.region());
          CHECK(difference(to.to(Device{}), expected, dtype == DType::f64 ? 1e-11 : 1e-2) == "");
          if (i == 0) first = to;
          CHECK(same_bits(to, first));
        }
      }
    }
  }
}

TEST_CASE("cuda: all_finite finds one bad element" * doctest::skip(no_gpu())) {
  const Tensor t = zeros({100000}, DType::f32, kGpu);
  CHECK(backend(kGpu).all_finite(t.region()));
  t.view({1}, {1}, 77777).fill(std::numeric_limits<double>::quiet_NaN());
  CHECK_FALSE(backend(kGpu).all_finite(t.region()));
  CHECK(backend(kGpu).all_finite(zeros({0}, DType::f32, kGpu).region()));
}

TEST_CASE("cuda: more memory than there is gives a ResourceError, and the device goes on" * doctest::skip(no_gpu())) {
  CHECK_THROWS_AS(empty({int64_t{1} << 50}, DType::f32, kGpu), ResourceError);
  CHECK(ones({3}, DType::f32, kGpu).to_vector<float>() == std::vector<float>{1, 1, 1});
}

}  // namespace margay::test
