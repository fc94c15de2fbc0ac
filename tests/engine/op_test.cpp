#include "engine/op.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "ops/rms_norm.h"
#include "tests/engine/tape.h"

namespace margay::test {
namespace {

const Op* find(const std::string& name) {
  for (const Op* op : Op::all())
    if (name == op->name()) return op;
  return nullptr;
}

template <class Call>
std::string op_error(const Call& call) {
  try {
    call();
  } catch (const OpError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace

TEST_CASE("ops are listed by name, each once") {
  std::vector<std::string> names;
  for (const Op* op : Op::all()) names.emplace_back(op->name());
  CHECK(std::is_sorted(names.begin(), names.end()));
  CHECK(std::adjacent_find(names.begin(), names.end()) == names.end());
  CHECK(find("rms_norm") != nullptr);
}

TEST_CASE("an error says op, argument, wanted and got") {
  const Op& op = *find("rms_norm");
  try {
    rms_norm(zeros({2, 8}), zeros({7}));
    FAIL("no error");
  } catch (const OpError& error) {
    CHECK(error.op() == "rms_norm");
    CHECK(error.arg() == "weight");
    CHECK(std::string(error.what()) == "rms_norm: weight must be [C], C = last axis of x f32[2,8], got f32[7]");
  }
  CHECK(op_error([&] { op.require_float("x", zeros({2}, DType::i32)); }) ==
        "rms_norm: x must be of a float dtype, got i32[2]");
  CHECK(op_error([&] { op.require_float("x", Tensor()); }) == "rms_norm: x must be of a float dtype, got none");
  CHECK(op_error([&] { op.require_like("y", zeros({2}, DType::f64), "x", zeros({2})); }) ==
        "rms_norm: y must be of the dtype and device of x f32[2], got f64[2]");
  CHECK(op_error([&] { op.require(false, "n", 3, "below {}", 2); }) == "rms_norm: n must be below 2, got 3");
  CHECK_NOTHROW(op.require(true, "n", 3, "below {}", 2));
  CHECK(op.axis(-1, zeros({2, 3})) == 1);
  CHECK(op.axis(0, zeros({2, 3})) == 0);
  CHECK(op_error([&] {
          static_cast<void>(op.axis(2, zeros({2, 3})));
        }) == "rms_norm: axis must be an axis of f32[2,3], got 2");
  CHECK(op_error([&] {
          static_cast<void>(op.axis(-3, zeros({2, 3})));
        }) == "rms_norm: axis must be an axis of f32[2,3], got -3");
}

TEST_CASE("a dtype without a kernel is refused by the launch") {
  const Tensor x = zeros({2, 3}, DType::bf16), w = zeros({3}, DType::bf16);
  CHECK(op_error([&] { rms_norm(x, w); }) == "rms_norm: device must be one with a kernel for it, got bf16[2,3]");
}

TEST_CASE("only leaves may be changed in place, and parameters only while nothing is recorded") {
  const Op& op = *find("rms_norm");
  const Tensor plain = zeros({2}), parameter = tape::leaf({1, 2});
  const uint64_t version = plain.storage()->version();
  CHECK_NOTHROW(op.mutate("x", plain));
  CHECK(plain.storage()->version() == version + 1);
  CHECK_THROWS_AS(op.mutate("x", parameter), OpError);
  const Tensor result = tape::scale(parameter, 2);
  const NoGrad no_grad;
  CHECK_NOTHROW(op.mutate("x", parameter));
  CHECK_THROWS_AS(op.mutate("x", result), OpError);
  CHECK_THROWS_AS(op.mutate("x", Tensor()), OpError);
}

}  // namespace margay::test
