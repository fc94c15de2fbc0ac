#include "tasks/sampling.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "tests/support/chi_square.h"

using namespace margay;

TEST_CASE("uniform_below is uniform and in range, beyond 32 bits too") {
  RandomStream random(1, 2);
  std::vector<double> counts(7, 0.0);
  for (int i = 0; i < 70'000; ++i) ++counts[uniform_below(random, 7)];
  CHECK(test::fits_law(counts, std::vector<double>(7, 1.0 / 7)));
  const uint64_t large = (uint64_t{1} << 40) + 5;
  double mean = 0;
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t draw = uniform_below(random, large);
    REQUIRE(draw < large);
    mean += static_cast<double>(draw) / static_cast<double>(large) / 20'000;
  }
  CHECK(std::abs(mean - 0.5) < 6 * std::sqrt(1.0 / 12 / 20'000));
  CHECK(uniform_below(random, 1) == 0);
}

TEST_CASE("draw_distinct gives every ordered choice equally often") {
  RandomStream random(3, 4);
  std::vector<double> counts(60, 0.0);  // 5 * 4 * 3 ordered choices
  for (int i = 0; i < 60'000; ++i) {
    uint32_t drawn[3];
    draw_distinct(random, 5, 3, [&](uint32_t place, uint32_t number) { drawn[place] = number; });
    REQUIRE(drawn[0] < 5);
    const uint32_t second = drawn[1] - (drawn[1] > drawn[0]);
    const uint32_t third = drawn[2] - (drawn[2] > drawn[0]) - (drawn[2] > drawn[1]);
    ++counts[(drawn[0] * 4 + second) * 3 + third];
  }
  CHECK(test::fits_law(counts, std::vector<double>(60, 1.0 / 60)));
}

TEST_CASE("draw_distinct never repeats a number, up to whole permutations") {
  RandomStream random(5, 6);
  for (uint32_t n : {1u, 2u, 3u, 17u, 1000u, 4'000'000'000u}) {
    for (uint32_t count : {0u, 1u, 2u, 16u, 1000u}) {
      if (count > n) continue;
      std::set<uint32_t> seen;
      uint32_t next = 0;
      draw_distinct(random, n, count, [&](uint32_t place, uint32_t number) {
        CHECK(place == next++);
        CHECK(number < n);
        seen.insert(number);
      });
      CHECK(seen.size() == count);
    }
  }
}

TEST_CASE("SlotSampler draws one after the other, in proportion to the weights left") {
  for (double power : {0.01, 1.0, 2.5}) {
    for (int64_t slots : {1, 2, 5, 8}) {
      CAPTURE(power);
      CAPTURE(slots);
      const SlotSampler sampler(8, power);
      std::vector<double> weight;
      double total = 0;
      for (int64_t slot = 0; slot < slots; ++slot) {
        weight.push_back(std::pow(static_cast<double>(slot + 1), power - 1));
        total += weight.back();
      }
      const int64_t drawn = std::min<int64_t>(3, slots);
      std::map<std::vector<int64_t>, double> law, counts;
      const auto extend = [&](const auto& self, std::vector<int64_t> chosen, double share, double left) -> void {
        if (static_cast<int64_t>(chosen.size()) == drawn) {
          law[chosen] = share;
          return;
        }
        for (int64_t slot = 0; slot < slots; ++slot) {
          if (std::find(chosen.begin(), chosen.end(), slot) != chosen.end()) continue;
          std::vector<int64_t> longer = chosen;
          longer.push_back(slot);
          self(self, longer, share * weight[slot] / left, left - weight[slot]);
        }
      };
      extend(extend, {}, 1, total);
      RandomStream random(8, static_cast<uint64_t>(slots));
      for (int i = 0; i < 30'000; ++i) {
        std::vector<int64_t> chosen(drawn, -1);
        sampler.draw(random, slots, drawn, [&](int64_t place, int64_t slot) { chosen[place] = slot; });
        ++counts[chosen];
      }
      std::vector<double> observed, expected;
      for (const auto& [chosen, share] : law) {
        observed.push_back(counts[chosen]);
        expected.push_back(share);
      }
      CHECK(counts.size() <= law.size());  // nothing that the law excludes
      CHECK(test::fits_law(observed, expected));
    }
  }
}

TEST_CASE("SlotSampler can empty all slots") {
  const SlotSampler sampler(1000, 0.01);
  RandomStream random(1, 1);
  std::set<int64_t> seen;
  sampler.draw(random, 1000, 1000, [&](int64_t, int64_t slot) { seen.insert(slot); });
  CHECK(seen.size() == 1000);
  CHECK(*seen.begin() == 0);
  CHECK(*seen.rbegin() == 999);
}

TEST_CASE("streams of different purposes, parts and 64-bit seeds differ") {
  std::set<uint64_t> seeds;
  for (const char* purpose : {"mqar", "ar", "text"}) {
    for (int64_t seed : {int64_t{7}, int64_t{7} + (int64_t{1} << 32), int64_t{-7}}) {
      for (uint64_t part : {0, 1, 2}) seeds.insert(derived_seed(seed, purpose, part));
    }
  }
  CHECK(seeds.size() == 27);
}
