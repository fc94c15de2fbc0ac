// Matrix products on a GPU: by cuBLASLt and by the project's own kernel, in f32 and in bf16. Skipped, and counted as
// skipped, where there is no GPU.

#include "ops/gpu_products.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/device.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/matmul.h"
#include "ops/precision.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};
constexpr double kTensorCores = 3e-5;  // their sums of f32 are cut off and not rounded

bool no_gpu() { return cuda_device_count() == 0; }

// Whether there is a cuBLASLt. On the emulated GPU it must be there: tests/cuda_emulator/cublaslt_test.cpp.
bool has_library() {
  static const bool found = [] {
    const NoGrad no_grad;
    const int64_t before = library_products();
    const Tensor x = ones({64, 64}, DType::f32, kGpu);
    matmul(x, x);
    const bool counted = library_products() > before;
    if (!counted) MESSAGE("cuBLASLt is not installed: all products are made by the own kernel");
    return counted;
  }();
  return found;
}

// How a factor lies in memory.
enum class Layout : uint8_t { rows, columns, padded, offset };

// A view of a tensor's values, or of their copy on the GPU, whose matrices lie as the layout says. In `offset`, rows
// start at addresses that are no multiple of 16 bytes.
Tensor laid_out(const Tensor& values, Layout layout) {
  if (layout == Layout::rows) return values;
  const int last = values.ndim() - 1;
  const bool by_columns = layout == Layout::columns;
  Shape block = values.shape(), strides;
  if (by_columns) std::swap(block[last], block[last - 1]);
  const int64_t padding = layout == Layout::padded ? 8 : layout == Layout::offset ? 3 : 0;
  block[last] += padding;
  strides = contiguous_strides(block);
  if (by_columns) std::swap(strides[last], strides[last - 1]);
  const Tensor storage = full(block, std::nan(""), values.dtype(), values.device());
  const Tensor view = storage.view(values.shape(), strides, padding / 3);
  view.copy_from(values);
  return view.detach();
}

struct ProductCase {
  std::string name;
  Shape a, b;
  Layout a_layout = Layout::rows, b_layout = Layout::rows;
  bool forward_by_library = true;
};

std::vector<ProductCase> product_cases() {
  std::vector<ProductCase> cases = {
      {"size 1", {1, 1}, {1, 1}},
      {"one row", {1, 7}, {7, 5}},
      {"one column", {6, 7}, {7, 1}},
      {"outer product", {6, 1}, {1, 5}},
      {"one column of columns", {6, 7}, {7, 1}, Layout::columns, Layout::columns},
      {"no depth", {3, 0}, {0, 2}, Layout::rows, Layout::rows, false},
      {"no rows", {0, 3}, {3, 2}, Layout::rows, Layout::rows, false},
      {"no batch", {0, 3, 2}, {1, 2, 2}, Layout::rows, Layout::rows, false},
      {"deep", {20, 2100}, {2100, 17}},
      {"deep, by columns", {20, 2100}, {2100, 17}, Layout::columns, Layout::columns},
      {"batch of one axis", {3, 20, 18}, {3, 18, 16}},
      {"shared right matrix", {3, 20, 18}, {1, 18, 16}},
      {"shared left matrix", {20, 18}, {3, 18, 16}},
      {"batch of two axes", {2, 3, 20, 18}, {2, 3, 18, 16}},
      {"broadcast both ways", {2, 1, 20, 18}, {3, 18, 16}, Layout::rows, Layout::rows, false}};
  for (const Layout a : {Layout::rows, Layout::columns, Layout::padded, Layout::offset})
    for (const Layout b : {Layout::rows, Layout::columns, Layout::padded, Layout::offset})
      for (const Shape& batch : {Shape{}, Shape{3}}) {
        Shape left = batch, right = batch;
        for (const int64_t size : {37, 50}) left.push_back(size);
        for (const int64_t size : {50, 41}) right.push_back(size);
        cases.push_back({"layouts", left, right, a, b});
      }
  return cases;
}

// A result, and the gradients of all inputs after two backward calls with cotangents of their own.
Tensors run(
    const std::function<Tensor(const Tensors&)>& call, const Tensors& inputs, Precision precision,
    const std::function<Tensor(const Tensor&)>& seen = [](const Tensor& t) { return t; }) {
  Tensors leaves;
  for (const Tensor& input : inputs) leaves.push_back(input.detach().set_requires_grad());
  Tensor y;
  {
    const PrecisionScope scope(precision);
    y = call(leaves);
  }
  for (const uint64_t seed : {11, 12})
    y.backward(seen(random_uniform(y.shape(), seed, -1, 1, DType::f32)).to(y.dtype()).to(y.device()), true);
  Tensors results{y.detach().to(Device{})};
  for (const Tensor& leaf : leaves) results.push_back(leaf.grad().to(Device{}));
  return results;
}

Tensor product(const Tensors& in) { return matmul(in[0], in[1]); }
Tensor layer(const Tensors& in) { return linear(in[0], in[1], in[2]); }

Tensor rounded(const Tensor& t) { return t.detach().to(DType::bf16).to(t.dtype()); }

void check_same(const Tensors& got, const Tensors& expected, double tolerance) {
  REQUIRE(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(difference_relative_to_max(got[i].to(DType::f64), expected[i].to(DType::f64), tolerance) == "");
  }
}

}  // namespace

TEST_CASE("gpu products: scopes nest and end") {
  CHECK(gpu_products() == GpuProducts::library);
  {
    const GpuProductsScope own(GpuProducts::own);
    const GpuProductsScope library(GpuProducts::library);
    CHECK(gpu_products() == GpuProducts::library);
  }
  CHECK(gpu_products() == GpuProducts::library);
}

TEST_CASE("gpu products: the library's and the own kernel's are the CPU's" * doctest::skip(no_gpu())) {
  const bool library = has_library();
  for (const ProductCase& c : product_cases()) {
    CAPTURE(c.name);
    CAPTURE(static_cast<int>(c.a_layout));
    CAPTURE(static_cast<int>(c.b_layout));
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
      CAPTURE(std::string(name_of(dtype)));
      const Tensor a = random_uniform(c.a, 1, -1, 1).to(dtype), b = random_uniform(c.b, 2, -1, 1).to(dtype);
      const Tensors inputs{laid_out(a.to(kGpu), c.a_layout), laid_out(b.to(kGpu), c.b_layout)};
      const Tensors expected = run(product, {a.to(DType::f64), b.to(DType::f64)}, Precision::f32);
      const double tolerance = dtype == DType::f64 ? 1e-13 : dtype == DType::f32 ? 1e-5 : 2e-2;
      const int64_t before = library_products();
      {
        const NoGrad no_grad;
        matmul(inputs[0], inputs[1]);
      }
      // A real library need not have a kernel for every alignment of every type.
      const int64_t made = library_products() - before, most = library && c.forward_by_library ? 1 : 0;
      CHECK((dtype == DType::f32 ? made == most : made <= most));
      check_same(run(product, inputs, Precision::f32), expected, tolerance);
      const GpuProductsScope own(GpuProducts::own);
      const int64_t after = library_products();
      check_same(run(product, inputs, Precision::f32), expected, tolerance);
      CHECK(library_products() == after);
    }
  }
}

TEST_CASE("gpu products: layers with a bias, by both" * doctest::skip(no_gpu())) {
  const bool library = has_library();
  for (const int64_t rows : {0, 1, 5, 40, 1100}) {
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
      CAPTURE(rows);
      CAPTURE(std::string(name_of(dtype)));
      const Tensors host{random_uniform({rows, 33}, 1).to(dtype), random_uniform({21, 33}, 2).to(dtype),
                         random_uniform({21}, 3).to(dtype)};
      Tensors inputs, wide;
      for (const Tensor& input : host) inputs.push_back(input.to(kGpu)), wide.push_back(input.to(DType::f64));
      // A bias that starts anywhere.
      const Tensor longer = full({24}, 7, dtype, kGpu);
      inputs[2] = longer.view({21}, {1}, 3).detach();
      inputs[2].copy_from(host[2].to(kGpu));
      const Tensors expected = run(layer, wide, Precision::f32);
      const double tolerance = dtype == DType::f64 ? 1e-13 : dtype == DType::f32 ? 1e-5 : 2e-2;
      const int64_t before = library_products();
      check_same(run(layer, inputs, Precision::f32), expected, tolerance);
      CHECK((library_products() > before) == (library && rows > 0));
      const GpuProductsScope own(GpuProducts::own);
      check_same(run(layer, inputs, Precision::f32), expected, tolerance);
    }
  }
}

TEST_CASE("gpu products: bf16 is the f32 product of rounded factors, forward and backward" * doctest::skip(no_gpu())) {
  for (const GpuProducts products : {GpuProducts::library, GpuProducts::own}) {
    const GpuProductsScope scope(products);
    CAPTURE(static_cast<int>(products));
    for (const ProductCase& c : product_cases()) {
      CAPTURE(c.name);
      CAPTURE(static_cast<int>(c.a_layout));
      CAPTURE(static_cast<int>(c.b_layout));
      const Tensor a = random_uniform(c.a, 1, -1, 1, DType::f32), b = random_uniform(c.b, 2, -1, 1, DType::f32);
      const Tensors inputs{laid_out(a.to(kGpu), c.a_layout), laid_out(b.to(kGpu), c.b_layout)};
      const Tensors got = run(product, inputs, Precision::bf16), exact = run(product, inputs, Precision::f32);
      const int last = c.a.ndim() - 1;
      const bool large = c.a[last - 1] >= 16 && c.a[last] >= 16 && c.b[c.b.ndim() - 1] >= 16 &&
                         c.a[last - 1] * c.a[last] * c.b[c.b.ndim() - 1] >= 1 << 15;
      if (large) {
        const Tensors wide{rounded(a).to(DType::f64), rounded(b).to(DType::f64)};
        check_same(got, run(product, wide, Precision::f32, rounded), kTensorCores);
        for (size_t i = 0; i < got.size(); ++i) CHECK(difference_relative_to_max(got[i], exact[i], 1e-4) != "");
      } else {
        for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], exact[i]));
      }
    }
    const Tensors host{random_uniform({70, 45}, 1, -1, 1, DType::f32), random_uniform({50, 45}, 2, -1, 1, DType::f32),
                       random_uniform({50}, 3, -1, 1, DType::f32)};
    Tensors inputs, wide;
    for (const Tensor& input : host) inputs.push_back(input.to(kGpu)), wide.push_back(rounded(input).to(DType::f64));
    wide[2] = host[2].to(DType::f64);
    Tensors expected = run(layer, wide, Precision::f32, rounded);
    expected[3] = run(layer, wide, Precision::f32)[3];  // cotangents are not rounded before they are summed
    check_same(run(layer, inputs, Precision::bf16), expected, kTensorCores);
  }
}

TEST_CASE("gpu products: bf16 rounds every number as a cast does" * doctest::skip(no_gpu())) {
  // 16 rows of numbers times the unit matrix; sums with zeros change nothing.
  std::vector<double> values(16 * 131);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = std::ldexp(1 + static_cast<double>(i % 512) / 512 / 8, static_cast<int>(i % 60) - 30);
  std::vector<double> unit(131 * 131);
  for (size_t i = 0; i < 131; ++i) unit[i * 132] = 1;
  const Tensor x = from_values(values, {16, 131}).to(DType::f32), one = from_values(unit, {131, 131}).to(DType::f32);
  const PrecisionScope precision(Precision::bf16);
  for (const Layout layout : {Layout::rows, Layout::columns, Layout::padded, Layout::offset}) {
    const Tensor there = laid_out(x.to(kGpu), layout);
    CHECK(same_bits(matmul(there, one.to(kGpu)).to(Device{}), rounded(x)));
    CHECK_FALSE(same_bits(rounded(x), x));
  }
}

TEST_CASE("gpu products: the loss in bf16 is that of rounded factors" * doctest::skip(no_gpu())) {
  const int64_t n = 40, V = 50, d = 20;
  const Tensor h = random_uniform({n, d}, 1, -2, 2, DType::f32), weight = random_uniform({V, d}, 2, -2, 2, DType::f32);
  std::vector<int32_t> targets;
  for (int32_t i = 0; i < n; ++i) targets.push_back(i % 7 == 3 ? -100 : i * 5 % static_cast<int32_t>(V));
  const auto loss = [&](const Tensors& in) {
    return linear_cross_entropy(in[0], in[1], from_values(targets, {n}, in[0].device())).nll;
  };
  const Tensors there{h.to(kGpu), weight.to(kGpu)};
  const Tensors wide{rounded(h).to(DType::f64), rounded(weight).to(DType::f64)};
  const Tensors expected = run(loss, wide, Precision::f32), exact = run(loss, there, Precision::f32);
  for (const GpuProducts products : {GpuProducts::library, GpuProducts::own}) {
    const GpuProductsScope scope(products);
    const Tensors got = run(loss, there, Precision::bf16);
    CHECK(difference_relative_to_max(got[0].to(DType::f64), expected[0], kTensorCores) == "");
    // The gradients of the logits are rounded, too: to 9 bits.
    for (size_t i = 1; i < got.size(); ++i) {
      CHECK(difference_relative_to_max(got[i].to(DType::f64), expected[i], 4e-3) == "");
      CHECK(difference_relative_to_max(got[i].to(DType::f64), expected[i], 1e-5) != "");
      CHECK(difference_relative_to_max(got[i], exact[i], 1e-5) != "");
    }
  }
}

TEST_CASE("gpu products: the loss over more logits than a chunk holds" * doctest::skip(no_gpu())) {
  const int64_t n = 4100, V = 4104, d = 2;
  const kernels::LossChunks chunk(n, V);
  REQUIRE(chunk.rows < n);
  REQUIRE(chunk.words < V);
  const Tensors inputs{random_uniform({n, d}, 1, -1, 1, DType::f32), random_uniform({V, d}, 2, -1, 1, DType::f32)};
  std::vector<int32_t> targets(static_cast<size_t>(n));
  for (size_t i = 0; i < targets.size(); ++i) targets[i] = static_cast<int32_t>(i * 7 % static_cast<size_t>(V));
  const auto loss = [&](const Tensors& in) {
    return linear_cross_entropy(in[0], in[1], from_values(targets, {n}, in[0].device())).nll;
  };
  const auto results = [&](Device device) {
    Tensor h = inputs[0].to(device).set_requires_grad(), weight = inputs[1].to(device).set_requires_grad();
    const Tensor nll = loss({h, weight});
    nll.backward(random_uniform({n}, 3, -1, 1, DType::f32).to(device));
    return Tensors{nll.detach().to(Device{}), h.grad().to(Device{}), weight.grad().to(Device{})};
  };
  check_same(results(kGpu), results({}), 1e-4);
}

TEST_CASE("gpu products: the same again has the same bits and takes no memory" * doctest::skip(no_gpu())) {
  const Tensors inputs{random_uniform({64, 300}, 1, -1, 1, DType::f32, kGpu),
                       random_uniform({48, 300}, 2, -1, 1, DType::f32, kGpu),
                       random_uniform({48}, 3, -1, 1, DType::f32, kGpu)};
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    const Tensors first = run(layer, inputs, precision);
    const MemoryCounters before = backend(kGpu).allocator().counters();
    const Tensors second = run(layer, inputs, precision);
    const MemoryCounters after = backend(kGpu).allocator().counters();
    CHECK(after.reserved == before.reserved);
    CHECK(after.live == before.live);
    for (size_t i = 0; i < first.size(); ++i) CHECK(same_bits(first[i], second[i]));
  }
}

}  // namespace margay::test
