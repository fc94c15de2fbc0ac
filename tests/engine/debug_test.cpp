#include "engine/debug.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "tests/engine/tape.h"

namespace margay::test {
namespace {

int64_t count(const std::string& text, const std::string& part) {
  int64_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

}  // namespace

TEST_CASE("tensors as text") {
  CHECK(debug::to_text(Tensor()) == "none");
  CHECK(debug::to_text(from_values({1.5}, {})) == "f64[]\n1.5");
  CHECK(debug::to_text(from_values<int32_t>({1, 2, 3, 4}, {2, 2})) == "i32[2,2]\n[[1, 2],\n [3, 4]]");
  CHECK(debug::to_text(zeros({0, 2})) == "f32[0,2]\n[]");
  CHECK(debug::to_text(from_values<bool>({true, false}, {2})) == "bool[2]\n[1, 0]");
  CHECK(debug::to_text(from_values({std::numeric_limits<double>::infinity()}, {1})) == "f64[1]\n[inf]");
  std::vector<int32_t> many(100);
  for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<int32_t>(i);
  CHECK(debug::to_text(from_values(many, {100}), 4) == "i32[100]\n[0, 1, ..., 98, 99]");
  CHECK(debug::to_text(from_values(many, {100}), 0) == "i32[100]\n[...]");
  CHECK(debug::to_text(from_values(many, {10, 10}).view({2, 2}, {1, 10}), 6) == "i32[2,2]\n[[0, 10],\n [1, 11]]");
}

TEST_CASE("the graph in the DOT language: every op and leaf once, and an edge for every input") {
  const Tensor x = tape::leaf({1, 2}), w = tape::leaf({3, 4});
  const Tensor square = tape::multiply(x, x);
  const Tensor loss = tape::sum(tape::add(tape::multiply(square, w), square));
  CHECK(debug::count_nodes(loss) == 4);
  const std::string text = debug::dot(loss);
  CHECK(text.substr(0, 16) == "digraph margay {");
  CHECK(text.substr(text.size() - 2) == "}\n");
  CHECK(count(text, "label=\"leaf\\n[2]\"") == 2);
  CHECK(count(text, "label=\"multiply\\n[2]\"") == 2);
  CHECK(count(text, "label=\"add\\n[2]\"") == 1);
  CHECK(count(text, "label=\"sum\\n[]\"") == 1);
  CHECK(count(text, " -> ") == 7);
  CHECK(count(text, "  n1 -> n0;\n") == 1);  // the op that made the root is number 0; edges lead to results
  CHECK(count(text, "  n0 -> ") == 0);
  loss.backward();
  CHECK(debug::dot(loss) == text);
}

TEST_CASE("there is no graph behind a tensor that was not recorded") {
  CHECK(count(debug::dot(zeros({2})), "->") == 0);
  CHECK(debug::count_nodes(zeros({2})) == 0);
  CHECK(debug::count_nodes(Tensor()) == 0);
  CHECK(debug::count_nodes(tape::leaf({1})) == 0);
}

}  // namespace margay::test
