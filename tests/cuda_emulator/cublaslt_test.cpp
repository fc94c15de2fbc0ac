// The emulated cuBLASLt is found by its name and used, so that the tests of products try both ways.

#include <doctest/doctest.h>

#include "engine/autograd.h"
#include "ops/gpu_products.h"
#include "ops/matmul.h"

namespace margay::test {

TEST_CASE("cuda: the emulated cuBLASLt makes products") {
  const NoGrad no_grad;
  const Tensor x = ones({64, 64}, DType::f32, Device{DeviceType::cuda});
  const int64_t before = library_products();
  CHECK(matmul(x, x).to(Device{}).to_vector<float>()[0] == 64);
  CHECK(library_products() == before + 1);
}

}  // namespace margay::test
