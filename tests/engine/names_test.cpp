#include "engine/names.h"

#include <doctest/doctest.h>

#include <array>

using margay::nearest_name;
using margay::quoted;

TEST_CASE("the nearest name has the smallest edit distance") {
  constexpr std::array<std::string_view, 4> names = {"d_model", "n_layers", "n_heads", "dropout"};
  CHECK(nearest_name("d_modl", names) == "d_model");    // deletion
  CHECK(nearest_name("d_mmodel", names) == "d_model");  // insertion
  CHECK(nearest_name("n_header", names) == "n_heads");  // substitution and insertion
  CHECK(nearest_name("dorpout", names) == "dropout");   // swap
  CHECK(nearest_name("n_heads", names) == "n_heads");
  CHECK(nearest_name("", names) == "d_model");  // equally far: the first
  CHECK(nearest_name("x", std::span<const std::string_view>()).empty());
}

TEST_CASE("a swap of neighbours is nearer than two substitutions") {
  constexpr std::array<std::string_view, 2> names = {"xyc", "bac"};
  CHECK(nearest_name("abc", names) == "bac");
}

TEST_CASE("a long name costs no more than its beginning") {
  constexpr std::array<std::string_view, 2> names = {"lr", "eps"};
  CHECK(nearest_name(std::string(10'000'000, 'x'), names) == "lr");
}

TEST_CASE("quoted text is one short line") {
  CHECK(quoted("plain") == "\"plain\"");
  CHECK(quoted("a\nb\x01\x7f") == "\"a\\x0ab\\x01\\x7f\"");
  CHECK(quoted("say \"hi\" \\") == "\"say \\\"hi\\\" \\\\\"");
  CHECK(quoted("\xc3\xa9") == "\"\xc3\xa9\"");  // UTF-8 stays
  const std::string shortened = quoted(std::string(1000, 'a'));
  CHECK(shortened.size() < 100);
  CHECK(shortened.substr(shortened.size() - 4) == "...\"");
}
