#include "tasks/study/table.h"

#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/error.h"

using namespace margay;

TEST_CASE("table: CSV there and back") {
  const std::vector<std::string> columns{"name", "value", "note"};
  Table table(columns);
  table.add({"first", "0.5", ""});
  table.add({"second", "-1e3", "a b"});
  CHECK(table.to_csv() == "name,value,note\nfirst,0.5,\nsecond,-1e3,a b\n");
  const Table again = parse_table(table.to_csv(), columns, "here");
  CHECK(again.to_csv() == table.to_csv());
  CHECK(again.size() == 2);
  CHECK(again.text(1, "note") == "a b");
  CHECK(again.number(0, "value") == 0.5);
  CHECK(again.number(1, "value") == -1000);
  CHECK(std::isnan(again.number(0, "note")));
  CHECK_THROWS_WITH_AS(again.number(0, "name"), doctest::Contains("first"), DataError);
  CHECK_THROWS_AS(again.text(0, "other"), std::logic_error);
}

TEST_CASE("table: rows that do not fit") {
  Table table({"a", "b"});
  CHECK_THROWS_AS(table.add({"1"}), std::logic_error);
  for (const char* cell : {"1,2", "\"", "1\n", "\r"}) CHECK_THROWS_AS(table.add({cell, ""}), std::logic_error);
  CHECK(table.size() == 0);
  for (const char* csv : {"", "a\n", "a,b\n1\n", "a,b\n1,2,3\n", "a,b\n1,\"2\"\n", "b,a\n1,2\n"}) {
    CAPTURE(csv);
    CHECK_THROWS_WITH_AS(parse_table(csv, {"a", "b"}, "there.csv"), doctest::Contains("there.csv"), DataError);
  }
}
