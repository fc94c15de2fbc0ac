#include "tasks/train/svg.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/train/report.h"
#include "tests/support/temp_dir.h"

using namespace margay;

namespace {

/// Whether the text is XML with every tag closed, in order; attributes are quoted and hold no '<'.
bool well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t at = xml.find('<'); at != std::string::npos; at = xml.find('<', at + 1)) {
    bool quoted = false;
    size_t end = at + 1;
    for (; end < xml.size() && (quoted || xml[end] != '>'); ++end) {
      if (xml[end] == '"') quoted = !quoted;
      if (xml[end] == '<') return false;
    }
    if (end == xml.size()) return false;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(tag[0] == '/', tag.find_first_of(" /", 1) - (tag[0] == '/'));
    if (tag[0] == '/') {
      if (open.empty() || open.back() != name) return false;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
  }
  for (size_t at = xml.find('&'); at != std::string::npos; at = xml.find('&', at + 1)) {
    const std::string entity = xml.substr(at, xml.find(';', at) - at);
    if (entity != "&amp" && entity != "&lt" && entity != "&gt" && entity != "&quot") return false;
  }
  return open.empty();
}

RunCurves made_up_run(const std::string& name, int64_t steps) {
  RunCurves run{name, {}};
  for (int64_t step = 1; step <= steps; ++step) {
    Metrics metrics;
    metrics.step = step;
    metrics.loss = 10 * std::exp(-0.01 * static_cast<double>(step));
    metrics.train_accuracy = 0.5;
    if (step % 50 == 0) metrics.test_loss = metrics.loss;
    if (step % 50 == 0) metrics.accuracy = 0.75;
    run.metrics.push_back(metrics);
  }
  return run;
}

std::vector<std::string> labels(const Axis& axis, double low, double high, int count = 5) {
  std::vector<std::string> texts;
  for (const Tick& tick : axis_ticks(axis, {low, high}, count)) texts.push_back(tick.label);
  return texts;
}

using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("axis: ticks are round numbers") {
  CHECK(labels({}, 0, 400, 8) == Texts{"0", "50", "100", "150", "200", "250", "300", "350", "400"});
  CHECK(labels({}, 0, 100000) == Texts{"0", "20,000", "40,000", "60,000", "80,000", "100,000"});
  CHECK(labels({}, -0.2, 0.2) == Texts{"-0.2", "-0.1", "0.0", "0.1", "0.2"});
  CHECK(labels({.percent = true}, 0, 1) == Texts{"0 %", "20 %", "40 %", "60 %", "80 %", "100 %"});
  CHECK(labels({.log = true}, 0.001, 10) == Texts{"0.001", "0.01", "0.1", "1", "10"});
  CHECK(labels({.log = true}, 1, 20) == Texts{"1", "2", "5", "10", "20"});
  CHECK(labels({.log = true}, 1e-8, 1e8).size() <= 9);
  CHECK(labels({.log = true, .ticks = {32, 64, 128, 16384}}, 64, 20000) == Texts{"64", "128", "16384"});
}

TEST_CASE("axis: ranges are rounded outwards and never empty") {
  const auto range = [](const Axis& axis, double low, double high) {
    const Range got = axis_range(axis, {low, high});
    return std::vector<double>{got.low, got.high};
  };
  CHECK(range({}, 0.1, 9.3) == std::vector<double>{0, 10});
  CHECK(range({.tight = true}, 0.1, 9.3) == std::vector<double>{0.1, 9.3});
  CHECK(range({.low = 0, .high = 1}, 0.2, 0.3) == std::vector<double>{0, 1});
  for (const double value : {0.0, 3.0, -3.0}) {
    const Range same = axis_range({}, {value, value});
    CHECK(same.low < value);
    CHECK(same.high > value);
  }
  const Range log = axis_range({.log = true}, {0.003, 8});
  CHECK(log.low == doctest::Approx(0.002));
  CHECK(log.high == doctest::Approx(10));
  CHECK(axis_share({.log = true}, {0.01, 100}, 1) == doctest::Approx(0.5));
  CHECK(std::isnan(axis_share({.log = true}, {0.01, 100}, 0)));
}

TEST_CASE("svg: figures are well-formed, with any text and any values") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const std::string hostile = "<a href=\"x\">&'\n\xff\x01 \xe2\x82";
  CHECK(well_formed("<a><b c=\"d\"/></a>"));
  CHECK_FALSE(well_formed("<a><b></a>"));
  for (const bool log : {false, true}) {
    for (const auto& y : std::vector<std::vector<double>>{{}, {1}, {1, 2}, {nan, nan}, {1, nan, 3, inf, -inf, 0, -1}}) {
      Figure figure{hostile, hostile, {}};
      std::vector<double> x;
      for (size_t i = 0; i < y.size(); ++i) x.push_back(static_cast<double>(i));
      for (const auto style : {Series::Style::line, Series::Style::faint_line, Series::Style::dashed_line,
                               Series::Style::line_and_points, Series::Style::band}) {
        figure.panels.push_back(
            {hostile, {.label = hostile}, {.label = hostile, .log = log}, {{hostile, "", x, y, 99, style, y}}});
      }
      const std::string svg = to_svg(figure);
      CHECK(well_formed(svg));
      CHECK(svg.find("nan") == std::string::npos);
      CHECK(svg.find("inf") == std::string::npos);
    }
  }
}

TEST_CASE("svg: a long run makes no large picture, and keeps its extremes") {
  Series series{.name = "x"};
  for (int i = 0; i < 200'000; ++i) {
    series.x.push_back(i);
    series.y.push_back(i == 123'456 ? 5 : std::sin(i));
  }
  const std::string svg = to_svg({"title", "", {{"panel", {.tight = true}, {.low = 0, .high = 5}, {series}}}});
  CHECK(svg.size() < 100'000);
  const std::string clip = "<rect x=\"72\" y=\"";  // of the plot, 4 pixels larger
  REQUIRE(svg.find(clip) != std::string::npos);
  const double top = std::stod(svg.substr(svg.find(clip) + clip.size())) + 4;
  CHECK(svg.find(fmt::format(" {:.1f}L", top)) != std::string::npos);  // the peak reaches it
}

TEST_CASE("svg: panels stand side by side under one legend") {
  Figure figure{"title", "", {}, 3, 100};
  for (int i = 0; i < 4; ++i) {
    figure.panels.push_back({.title = fmt::format("panel {}", i),
                             .x = {.label = "across"},
                             .y = {.label = "up"},
                             .series = {{.name = "only", .x = {0, 1}, .y = {0, 1}}}});
  }
  const auto times = [](const std::string& svg, std::string_view text) {
    size_t count = 0;
    for (size_t at = svg.find(text); at != svg.npos; at = svg.find(text, at + 1)) ++count;
    return count;
  };
  const std::string rows = to_svg(figure);
  CHECK(well_formed(rows));
  CHECK(times(rows, ">only ") == 1);
  CHECK(times(rows, ">up<") == 2);
  CHECK(times(rows, ">across<") == 4);
  figure.columns = 1;
  const std::string column = to_svg(figure);
  CHECK(times(column, ">only ") == 4);
  CHECK(times(column, ">up<") == 4);
  const auto height = [](const std::string& svg) { return std::stod(svg.substr(svg.find("height=\"") + 8)); };
  CHECK(height(rows) < 0.7 * height(column));
}

TEST_CASE("svg: a band is filled between its edges") {
  const Series band{.name = "band", .x = {0, 1}, .y = {0, 0}, .style = Series::Style::band, .top = {1, 0.5}};
  const std::string svg = to_svg({"", "", {{"", {.tight = true}, {.low = 0, .high = 1}, {band}}}, 1, 100});
  CHECK(well_formed(svg));
  const size_t path = svg.rfind("<path d=\"M76.0 ");
  REQUIRE(path != svg.npos);
  CHECK(svg.substr(path, svg.find('/', path) - path).find("class=\"band\"") != std::string::npos);
  CHECK(svg.find('z', path) < svg.find('"', path + 10));
}

TEST_CASE("report: pictures of runs name them and their results") {
  const RunCurves a = made_up_run("first & best", 400), b = made_up_run("second", 30);
  const std::string one = to_svg(run_figure(a, "one layer"));
  CHECK(well_formed(one));
  CHECK(one.find("first &amp; best") != std::string::npos);
  CHECK(one.find("one layer") != std::string::npos);
  CHECK(one.find("75.0 %") != std::string::npos);
  const std::vector<RunCurves> both{a, b};
  const std::string two = to_svg(comparison_figure(both));
  CHECK(well_formed(two));
  CHECK(two.find("second") != std::string::npos);
  CHECK(run_figure(a, "").panels[0].y.log);  // 10 to 0.18
  CHECK_FALSE(run_figure(b, "").panels[0].y.log);
  CHECK_FALSE(run_figure(a, "", LossScale::linear).panels[0].y.log);
}

TEST_CASE("report: smoothing keeps a sudden fall where it is") {
  RunCurves run{"step", {}};
  for (int64_t step = 1; step <= 1000; ++step) {
    Metrics metrics;
    metrics.step = step;
    metrics.loss = step <= 500 ? 2 : 1;
    run.metrics.push_back(metrics);
  }
  const Series smooth = run_figure(run, "").panels[0].series[1];
  REQUIRE(smooth.y.size() == 1000);
  CHECK(smooth.y[0] == 2);
  CHECK(smooth.y[480] == 2);
  CHECK(smooth.y[520] == 1);
  CHECK(smooth.y[499] > 1.5);
  CHECK(smooth.y[500] < 1.5);
  CHECK(smooth.y[999] == 1);
}

TEST_CASE("report: a folder without metrics is an error that names it") {
  const test::TempDir dir;
  CHECK_THROWS_WITH_AS(load_curves(dir.file("none")), doctest::Contains("none/metrics.jsonl"), DataError);
  dir.write("metrics.jsonl", "");
  CHECK_THROWS_WITH_AS(load_curves(dir.file("")), doctest::Contains("no metrics yet"), DataError);
  CHECK(run_name("runs/some-run/") == "some-run");
  CHECK(run_name("runs/some-run") == "some-run");
}
