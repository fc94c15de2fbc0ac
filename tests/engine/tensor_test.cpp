#include "engine/tensor.h"

#include <doctest/doctest.h>

#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/parallel.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

// 0, 1, 2 ... in f64.
Tensor counting(const Shape& shape) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  std::iota(values.begin(), values.end(), 0.0);
  return from_values(values, shape);
}

}  // namespace

TEST_CASE("tensors know their shape, dtype and device") {
  const Tensor t = zeros({2, 3, 8}, DType::i64);
  CHECK(describe(t) == "i64[2,3,8]");
  CHECK(describe(Tensor()) == "none");
  CHECK(t.numel() == 48);
  CHECK(t.dim(-1) == 8);
  CHECK(t.dim(0) == 2);
  CHECK_THROWS_AS(static_cast<void>(t.dim(3)), std::out_of_range);
  CHECK_THROWS_AS(static_cast<void>(t.dim(-4)), std::out_of_range);
  CHECK(t.is_contiguous());
  CHECK(t.device() == Device{});
  CHECK(t.storage()->bytes() == 48 * 8);
  CHECK(zeros({}).numel() == 1);
  CHECK(zeros({3, 0}).numel() == 0);
  CHECK(full({2}, 7, DType::i32).to_vector<int32_t>() == std::vector<int32_t>{7, 7});
  CHECK(ones({2}, DType::boolean).to_vector<bool>() == std::vector<bool>{true, true});
  CHECK_FALSE(Tensor().defined());
  CHECK_THROWS_AS(Tensor().shape(), std::logic_error);
}

TEST_CASE("shapes that cannot be allocated are refused with a typed error") {
  CHECK_THROWS_AS(empty({2, -1}), OpError);
  CHECK_THROWS_AS(empty({int64_t{1} << 40, int64_t{1} << 40}), OpError);
  CHECK_THROWS_AS(empty({int64_t{1} << 62}), OpError);  // bytes wrap, elements do not
  CHECK_THROWS_AS(empty({0, int64_t{1} << 40, int64_t{1} << 40}), OpError);
  CHECK_THROWS_AS(from_values<float>({1, 2, 3}, {2}), OpError);
}

TEST_CASE("views share memory and stay inside of it") {
  const Tensor t = counting({3, 4});
  const Tensor transposed = t.view({4, 3}, {1, 4});
  CHECK(transposed.to_vector<double>() == std::vector<double>{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11});
  CHECK_FALSE(transposed.is_contiguous());
  const Tensor corner = transposed.view({2, 2}, {1, 4}, 5);  // offset counts from the view's first element
  CHECK(corner.to_vector<double>() == std::vector<double>{5, 9, 6, 10});
  CHECK(corner.offset() == 5);
  corner.fill(-1);
  CHECK(t.to_vector<double>() == std::vector<double>{0, 1, 2, 3, 4, -1, -1, 7, 8, -1, -1, 11});

  const Tensor backwards = t.view({4}, {-1}, 3);
  CHECK(backwards.to_vector<double>() == std::vector<double>{3, 2, 1, 0});
  const Tensor repeated = t.view({2, 3}, {0, 1}, 2);
  CHECK(repeated.to_vector<double>() == std::vector<double>{2, 3, 4, 2, 3, 4});

  CHECK_THROWS_AS(t.view({3, 5}, {4, 1}), std::out_of_range);
  CHECK_THROWS_AS(t.view({12}, {1}, 1), std::out_of_range);
  CHECK_THROWS_AS(t.view({1}, {1}, -1), std::out_of_range);
  CHECK_THROWS_AS(t.view({4}, {-1}, 2), std::out_of_range);
  CHECK_THROWS_AS(t.view({-1}, {1}), std::out_of_range);
  CHECK_THROWS_AS(t.view({2}, {1, 1}), std::out_of_range);
  CHECK_THROWS(t.view({3, 3}, {std::numeric_limits<int64_t>::max(), 1}));
  CHECK_NOTHROW(t.view({0, 7}, {100, 1}));
}

TEST_CASE("a contiguous tensor is its own contiguous()") {
  const Tensor t = counting({2, 3});
  CHECK(t.contiguous().same(t));
  CHECK_FALSE(t.clone().same(t));
  CHECK(t.view({2, 1, 3}, {3, 99, 1}).is_contiguous());  // the stride of an axis of size 1 does not matter
  CHECK(t.view({0, 5}, {1, 2}).is_contiguous());
  const Tensor every_other = t.view({2, 2}, {3, 2});
  CHECK(every_other.contiguous().to_vector<double>() == std::vector<double>{0, 2, 3, 5});
  CHECK_THROWS_AS(every_other.data<double>(), std::logic_error);
  CHECK_THROWS_AS(t.data<float>(), std::logic_error);
  CHECK(every_other.strided<double>().strides == Shape{3, 2});
}

TEST_CASE("copies, with any strides, dtypes and sizes") {
  for (const Shape& shape : {Shape{}, Shape{0, 3}, Shape{1}, Shape{5}, Shape{3, 4}, Shape{2, 3, 4, 5},
                             Shape{40, 3, 700}, Shape{2, 1, 2, 1, 2, 1, 2}}) {
    CAPTURE(to_string(shape));
    const Tensor source = random_uniform(shape, 3);
    const Tensor strided = as_strided_copy(source);
    CHECK(same_bits(strided, source));
    const Tensor target = as_strided_copy(zeros_like(source));
    target.copy_from(strided);
    CHECK(same_bits(target, source));
    target.copy_from(source.to(DType::f32));
    CHECK(difference(target, source, 1e-7) == "");
  }
  CHECK_THROWS_AS(zeros({2}).copy_from(zeros({3})), OpError);
}

TEST_CASE("accumulate adds, and sums over broadcast axes, for any number of threads alike") {
  struct Case {
    Shape to, from;
  };
  const std::vector<Case> cases = {{{4, 5}, {4, 5}},
                                   {{5}, {4, 5}},
                                   {{4, 1}, {4, 5}},
                                   {{}, {4, 5}},
                                   {{1, 1}, {4, 5}},
                                   {{3, 1, 2}, {2, 3, 4, 2}},
                                   {{}, {}},
                                   {{3}, {0, 3}},
                                   {{0, 2}, {4, 0, 2}},
                                   {{70}, {500, 70}},
                                   {{1}, {100000}},
                                   {{130, 1}, {130, 900}},
                                   {{2, 1, 3}, {2, 9000, 3}}};
  const int before = num_threads();
  for (const Case& c : cases) {
    CAPTURE(to_string(c.to));
    CAPTURE(to_string(c.from));
    const Tensor start = random_uniform(c.to, 1), terms = random_uniform(c.from, 2);
    // The plain definition, on the host.
    std::vector<double> expected = start.to_vector<double>();
    const auto values = terms.to_vector<double>();
    const Shape index_strides = broadcast_strides(c.to, contiguous_strides(c.to), c.from);
    for (size_t i = 0; i < values.size(); ++i) {
      auto rest = static_cast<int64_t>(i);
      int64_t at = 0;
      for (int axis = c.from.ndim() - 1; axis >= 0; --axis) {
        at += rest % c.from[axis] * index_strides[axis];
        rest /= c.from[axis];
      }
      expected[static_cast<size_t>(at)] += values[i];
    }
    for (const bool strided : {false, true}) {
      for (const DType dtype : {DType::f64, DType::f32}) {
        Tensor first;
        for (const int threads : {1, 2, 3}) {
          set_num_threads(threads);
          const Tensor from = strided ? as_strided_copy(terms.to(dtype)) : terms.to(dtype);
          const Tensor to = strided ? as_strided_copy(start.to(dtype).clone()) : start.to(dtype).clone();
          cpu_backend().accumulate(to.region(), from.region());
          CHECK(difference(to, from_values(expected, c.to), dtype == DType::f64 ? 1e-11 : 2e-4) == "");
          if (!first.defined()) first = to;
          CHECK(same_bits(to, first));
        }
      }
    }
  }
  set_num_threads(before);
  const Tensor sum = zeros({}, DType::bf16), many = ones({300}, DType::bf16);
  cpu_backend().accumulate(sum.region(), many.region());
  CHECK(sum.item() == 300);  // summed in f32: bf16 itself stops counting at 256
  const Tensor overlapping = counting({3}).view({4, 3}, {0, 1}), column = zeros({3}, DType::f64);
  cpu_backend().accumulate(column.region(), overlapping.region());
  CHECK(column.to_vector<double>() == std::vector<double>{0, 4, 8});
}

TEST_CASE("all_finite finds one bad element wherever it is") {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
      for (const int64_t where : {0, 7, 49999, 99999}) {
        const Tensor t = full({100000}, 3e38, dtype);
        CHECK(cpu_backend().all_finite(t.region()));
        t.view({1}, {1}, where).fill(bad);
        CHECK_FALSE(cpu_backend().all_finite(t.region()));
        CHECK_FALSE(cpu_backend().all_finite(t.view({50000, 2}, {1, 50000}).region()));
      }
    }
  }
  CHECK(cpu_backend().all_finite(zeros({0}).region()));
}

TEST_CASE("item takes one element of any dtype") {
  CHECK(from_values<int64_t>({42}, {1, 1}).item() == 42);
  CHECK(from_values<bool>({true}, {}).item() == 1);
  CHECK_THROWS_AS(static_cast<void>(zeros({2}).item()), OpError);
  CHECK_THROWS_AS(static_cast<void>(zeros({0}).item()), OpError);
}

TEST_CASE("a tensor is exclusive if nobody else can see its memory") {
  Tensor t = zeros({3});
  CHECK(t.exclusive());
  {
    const Tensor handle = t;
    CHECK_FALSE(t.exclusive());
  }
  {
    const Tensor view = t.detach();
    CHECK_FALSE(t.exclusive());
    CHECK_FALSE(view.exclusive());
  }
  CHECK(t.exclusive());
}

}  // namespace margay::test
