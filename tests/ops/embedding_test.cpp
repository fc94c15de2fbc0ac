#include "ops/embedding.h"

#include <doctest/doctest.h>

#include "engine/parallel.h"
#include "engine/rng.h"
#include "ops/concat.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

// Ids below `size`, every second one `frequent`.
Tensor skewed_ids(int64_t count, int64_t size, int32_t frequent, uint64_t seed) {
  RandomStream random(seed, 1);
  std::vector<int32_t> values(static_cast<size_t>(count));
  for (int32_t& id : values)
    id = random.below(2) == 0 ? frequent : static_cast<int32_t>(random.below(static_cast<uint32_t>(size)));
  return from_values(values, {count});
}

// The rows of dy summed by id in f64, in the order in which they occur.
Elements summed_rows(const Tensor& dy, const Tensor& ids, const Shape& shape) {
  Elements sums(shape);
  const Elements e(dy);
  const auto id = ids.to_vector<int32_t>();
  for (size_t j = 0; j < id.size(); ++j)
    for (int64_t c = 0; c < shape[1] && id[j] >= 0; ++c) sums({id[j], c}) += e({static_cast<int64_t>(j), c});
  return sums;
}

}  // namespace

TEST_CASE("embedding: rows and their summed gradients, for widths and counts around every block size") {
  for (const int64_t width : {1, 3, 15, 16, 17, 64, 65, 100, 128, 400}) {
    for (const int64_t count : {1, 7, 255, 256, 257, 700}) {
      CAPTURE(width);
      CAPTURE(count);
      Tensor weight = random_uniform({40, width}, 1, -1, 1, DType::f32);
      weight.set_requires_grad();
      const Tensor ids = skewed_ids(count, 40, 11, 2), dy = random_uniform({count, width}, 3, -1, 1, DType::f32);
      const Tensor y = embedding(weight, ids);
      const auto id = ids.to_vector<int32_t>();
      const Elements e(weight);
      CHECK(same_bits(y, from_function({count, width}, DType::f32, [&](const Index& i) {
                        return e({id[static_cast<size_t>(i[0])], i[1]});
                      })));
      y.backward(dy);
      CHECK(difference(weight.grad(), summed_rows(dy, ids, weight.shape()).to_tensor(DType::f64), 2e-5) == "");
    }
  }
}

TEST_CASE("embedding: sorted ids take the short way to the same sums") {
  Tensor weight = random_uniform({9, 20}, 1);
  weight.set_requires_grad();
  std::vector<int32_t> id;
  for (int32_t i = 0; i < 2000; ++i) id.push_back(i * 9 / 2000);
  const Tensor ids = from_values(id, {2000}), dy = random_uniform({2000, 20}, 3);
  embedding(weight, ids).backward(dy);
  CHECK(difference(weight.grad(), summed_rows(dy, ids, weight.shape()).to_tensor(DType::f64), 1e-12) == "");
}

TEST_CASE("embedding: the gradient of a vocabulary has the same bits for any number of threads") {
  const int before = num_threads();
  Tensor weight = random_uniform({8192, 64}, 1, -1, 1, DType::f32);
  weight.set_requires_grad();
  const Tensor ids = skewed_ids(4096, 8192, 0, 2), dy = random_uniform({4096, 64}, 3, -1, 1, DType::f32);
  Tensor expected;
  for (const int threads : {1, 2, 3, 5}) {
    set_num_threads(threads);
    weight.zero_grad();
    embedding(weight, ids).backward(dy);
    if (!expected.defined()) expected = weight.grad();
    CHECK(same_bits(weight.grad(), expected));
  }
  set_num_threads(before);
  CHECK(difference(expected, summed_rows(dy, ids, weight.shape()).to_tensor(DType::f64), 1e-4) == "");
}

TEST_CASE("embedding: adds to the gradient that a tied output layer left") {
  Tensor weight = random_uniform({8192, 64}, 1, -1, 1, DType::f32);
  weight.set_requires_grad();
  const Tensor ids = skewed_ids(300, 8192, 5, 2), dy = random_uniform({8492, 64}, 3, -1, 1, DType::f32);
  const Tensor inputs = embedding(weight, ids);
  // The second use of the weight is recorded later, so its gradient comes first.
  const Tensor y = concat({slice(weight, 0, 0, 8192), inputs}, 0);
  CachingAllocator& allocator = backend({}).allocator();
  allocator.reset_peak();
  const int64_t live = allocator.counters().live, bytes = weight.numel() * 4;
  y.backward(dy);
  CHECK(allocator.counters().peak - live < bytes + bytes / 2);
  const Elements direct(slice(dy, 0, 0, 8192));
  Elements expected = summed_rows(slice(dy, 0, 8192, 8492), ids, weight.shape());
  for_each_index(weight.shape(), [&](const Index& i) { expected(i) += direct(i); });
  CHECK(difference(weight.grad(), expected.to_tensor(DType::f64), 2e-5) == "");
}

TEST_CASE("take_rows: zeros and no gradient for missing rows") {
  Tensor x = random_uniform({5, 3}, 1);
  x.set_requires_grad();
  const Tensor rows = from_values<int32_t>({4, -1, 0, 4, -1}, {5}), dy = random_uniform({5, 3}, 2);
  const Tensor y = take_rows(x, rows);
  const Elements e(x);
  const int64_t row[] = {4, -1, 0, 4, -1};
  CHECK(same_bits(y, from_function({5, 3}, DType::f64, [&](const Index& i) {
                    return row[i[0]] < 0 ? 0 : e({row[i[0]], i[1]});
                  })));
  y.backward(dy);
  CHECK(difference(x.grad(), summed_rows(dy, rows, x.shape()).to_tensor(DType::f64), 1e-15) == "");
  Tensor wide = random_uniform({6, 64}, 3);
  wide.set_requires_grad();
  const Tensor many = random_uniform({1000}, 4, -1.99, 6).to(DType::i32), dwide = random_uniform({1000, 64}, 5);
  take_rows(wide, many).backward(dwide);
  CHECK(difference(wide.grad(), summed_rows(dwide, many, wide.shape()).to_tensor(DType::f64), 1e-12) == "");
  const Tensor none = take_rows(x, full({3}, -1, DType::i32));
  x.zero_grad();
  none.backward(random_uniform({3, 3}, 2));
  CHECK(same_bits(x.grad(), zeros({5, 3}, DType::f64)));
  for (const DType dtype : {DType::bf16, DType::i32, DType::i64, DType::boolean})
    CHECK(take_rows(ones({2, 2}, dtype), from_values<int32_t>({1, -1}, {2})).to(DType::i32).to_vector<int32_t>() ==
          std::vector<int32_t>{1, 1, 0, 0});
}

TEST_CASE("embedding, take_rows: gradients meet those of other uses") {
  const auto call = [](const Tensors& in) {
    const Tensor& x = in[0];
    return Tensors{concat({take_rows(x, from_values<int32_t>({2, -1, 2, 0}, {4})), x,
                           embedding(x, from_values<int32_t>({1, 2, 1}, {3})), transpose(reshape(x, {2, 4}), 0, 1)},
                          0)};
  };
  CHECK(gradcheck(call, {random_uniform({4, 2}, 3)}, {true}) == "");
}

TEST_CASE("embedding, take_rows: errors name the first bad id") {
  const Tensor weight = zeros({7, 2});
  std::vector<int32_t> id(3000, 6);
  CHECK(op_error([&] { embedding(weight, from_values(id, {3, 1000})); }).empty());
  id[2500] = -3;
  id[2400] = 7;
  CHECK(op_error([&] {
          embedding(weight, from_values(id, {3, 1000}));
        }) == "embedding: ids must be at least 0 and less than 7, got 7 at [2,400]");
  id[2400] = 0;
  CHECK(op_error([&] {
          embedding(weight, from_values(id, {3, 1000}));
        }) == "embedding: ids must be at least 0 and less than 7, got -3 at [2,500]");
  CHECK(op_error([&] { embedding(weight, full({}, -1, DType::i32)); }).ends_with("got -1 at []"));
  CHECK(op_error([&] { embedding(weight, zeros({2}, DType::i64)); }) ==
        "embedding: ids must be of dtype i32 on cpu, got i64[2]");
  CHECK(op_error([&] { embedding(weight, expand(zeros({1}, DType::i32), {int64_t{1} << 31})); }) ==
        "embedding: ids must be of less than 2^31 elements, got i32[2147483648]");
  CHECK(op_error([&] { embedding(zeros({7}), zeros({2}, DType::i32)); }) ==
        "embedding: weight must be [V, d], got f32[7]");
  CHECK(op_error([&] {
          embedding(zeros({7, 2}, DType::i32), zeros({2}, DType::i32));
        }) == "embedding: weight must be of a float dtype, got i32[7,2]");
  CHECK(op_error([&] {
          take_rows(weight, from_values<int32_t>({0, -2}, {2}));
        }) == "take_rows: rows must be at least -1 and less than 7, got -2 at [1]");
  CHECK(op_error([&] { take_rows(weight, zeros({1, 2}, DType::i32)); }) == "take_rows: rows must be [R], got i32[1,2]");
  CHECK(op_error([&] { take_rows(zeros({7}), zeros({2}, DType::i32)); }) == "take_rows: x must be [T, d], got f32[7]");
}

}  // namespace margay::test
