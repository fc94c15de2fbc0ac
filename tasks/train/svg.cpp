#include "tasks/train/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "tasks/utf8.h"

namespace margay {
namespace {

// Pixels.
constexpr double kWidth = 900, kLeft = 76, kRight = 28, kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = 250;
constexpr double kTitleSpace = 64, kSubtitleSpace = 20, kBottom = 16;
constexpr double kPanelTitle = 26, kLegendRow = 20, kAxisSpace = 62;
constexpr double kCharacter = 7.3;  // mean width of a letter of the legend

// Okabe and Ito's colours, which colour-blind readers tell apart, a little darker for thin lines on white.
constexpr std::array<std::string_view, 8> kPalette = {"#0b6bb0", "#d1490c", "#0a8f6c", "#b0569a",
                                                      "#b8860b", "#2c9fd6", "#555555", "#7a5bd1"};

constexpr std::string_view kStyle = R"(<style>
text { font: 13px Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif; fill: #30363d }
.title { font-size: 21px; font-weight: 600; fill: #1b1f24 }
.subtitle { fill: #6a737d }
.panel { font-size: 15px; font-weight: 600; fill: #1b1f24 }
.note { font-weight: 600 }
.label { fill: #57606a }
.x { text-anchor: middle }
.y { text-anchor: end }
.grid { stroke: #e4e7eb; fill: none }
.axis { stroke: #8b949e; fill: none }
.line { stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; fill: none }
.faint { stroke-width: 1; stroke-opacity: 0.35; stroke-linejoin: round; fill: none }
.points { stroke: #ffffff }
</style>
)";

struct Point {
  double x, y;
};
using Line = std::vector<Point>;

std::string_view colour_of(const Series& series) { return kPalette[series.colour % kPalette.size()]; }

/// The span of the values that an axis can show; without any, what gives an ordinary empty axis.
Range span_of(const std::vector<Series>& series, std::vector<double> Series::*values, const Axis& axis) {
  Range range{std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
  for (const Series& one : series) {
    for (const double value : one.*values) {
      if (!std::isfinite(value) || (axis.log && value <= 0)) continue;
      range = {std::min(range.low, value), std::max(range.high, value)};
    }
  }
  if (range.low > range.high) return {axis.log ? 0.1 : 0.0, 1.0};
  return range;
}

/// Appends a point. Of the points in one column of pixels only the first, the extremes and the last stay: the picture
/// is the same, and its size does not grow with the run.
void append(Line& line, const Point& point) {
  const size_t count = line.size();
  if (count < 4 || std::floor(line[count - 4].x) != std::floor(point.x)) return line.push_back(point);
  Point &a = line[count - 3], &b = line[count - 2], &last = line[count - 1];  // all in this column
  Point &lower = a.y < b.y ? a : b, &upper = a.y < b.y ? b : a;
  if (last.y < lower.y) {
    lower = last;
  } else if (last.y > upper.y) {
    upper = last;
  }
  if (a.x > b.x) std::swap(a, b);
  last = point;
}

struct LegendEntry {
  const Series* series;
  double x;
  size_t row;
};

/// The named series in rows as wide as the plot.
std::vector<LegendEntry> legend_of(const Panel& panel) {
  std::vector<LegendEntry> entries;
  double x = 0;
  size_t row = 0;
  for (const Series& series : panel.series) {
    if (series.name.empty()) continue;
    const auto letters = [](std::string_view utf8) {
      return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; });
    };
    const double width = 52 + kCharacter * static_cast<double>(letters(series.name) + letters(series.note));
    if (x > 0 && x + width > kPlotWidth) {
      x = 0;
      ++row;
    }
    entries.push_back({&series, x, row});
    x += width;
  }
  return entries;
}

double legend_height(const std::vector<LegendEntry>& legend) {
  return legend.empty() ? 0 : kLegendRow * static_cast<double>(legend.back().row + 1);
}

/// Draws one panel with its upper edge at `top`.
class PanelDrawing {
 public:
  PanelDrawing(const Panel& panel, size_t index, double top)
      : panel_(panel),
        index_(index),
        x_(axis_range(panel.x, span_of(panel.series, &Series::x, panel.x))),
        y_(axis_range(panel.y, span_of(panel.series, &Series::y, panel.y))),
        legend_(legend_of(panel)),
        top_(top),
        plot_top_(top + kPanelTitle + legend_height(legend_)) {}

  double bottom() const { return plot_top_ + kPlotHeight + kAxisSpace; }

  std::string draw() {
    draw_title();
    draw_axes();
    svg_ += fmt::format(
        "<clipPath id=\"plot{0}\"><rect x=\"{1}\" y=\"{2}\" width=\"{3}\" height=\"{4}\"/></clipPath>\n"
        "<g clip-path=\"url(#plot{0})\">\n",
        index_, kLeft, plot_top_ - 4, kPlotWidth + 4, kPlotHeight + 8);
    for (const Series& series : panel_.series) draw_series(series);
    return svg_ + "</g>\n";
  }

 private:
  double pixel_x(double value) const { return kLeft + kPlotWidth * axis_share(panel_.x, x_, value); }
  double pixel_y(double value) const { return plot_top_ + kPlotHeight * (1 - axis_share(panel_.y, y_, value)); }

  void draw_title() {
    svg_ +=
        fmt::format("<text x=\"{}\" y=\"{}\" class=\"panel\">{}</text>\n", kLeft, top_ + 14, xml_escaped(panel_.title));
    for (const auto& [series, offset, row] : legend_) {
      const double x = kLeft + offset, y = top_ + kPanelTitle + 8 + kLegendRow * static_cast<double>(row);
      svg_ += fmt::format(
          "<path d=\"M{:.1f} {:.1f}h16\" class=\"line\" stroke=\"{}\"/>"
          "<text x=\"{:.1f}\" y=\"{:.1f}\">{} <tspan class=\"note\">{}</tspan></text>\n",
          x + 1, y - 4.5, colour_of(*series), x + 24, y, xml_escaped(series->name), xml_escaped(series->note));
    }
  }

  void draw_axes() {
    const double bottom = plot_top_ + kPlotHeight;
    for (const Tick& tick : axis_ticks(panel_.y, y_, 5)) {
      const double y = pixel_y(tick.value);
      svg_ +=
          fmt::format("<path d=\"M{} {:.1f}h{}\" class=\"grid\"/><text x=\"{}\" y=\"{:.1f}\" class=\"y\">{}</text>\n",
                      kLeft, y, kPlotWidth, kLeft - 10, y + 4.5, tick.label);
    }
    for (const Tick& tick : axis_ticks(panel_.x, x_, 8)) {
      const double x = pixel_x(tick.value);
      svg_ += fmt::format(
          "<path d=\"M{0:.1f} {1}v5\" class=\"axis\"/><text x=\"{0:.1f}\" y=\"{2}\" class=\"x\">{3}</text>\n", x,
          bottom, bottom + 20, tick.label);
    }
    svg_ += fmt::format(
        "<path d=\"M{} {}h{}\" class=\"axis\"/>\n<text x=\"{}\" y=\"{}\" class=\"label x\">{}</text>\n"
        "<text transform=\"translate(22 {}) rotate(-90)\" class=\"label x\">{}</text>\n",
        kLeft, bottom, kPlotWidth, kLeft + kPlotWidth / 2, bottom + 42, xml_escaped(panel_.x.label),
        plot_top_ + kPlotHeight / 2, xml_escaped(panel_.y.label));
  }

  /// The series in pixels, cut where a value cannot be shown.
  std::vector<Line> lines_of(const Series& series) const {
    std::vector<Line> lines(1);
    const size_t count = std::min(series.x.size(), series.y.size());
    for (size_t i = 0; i < count; ++i) {
      const Point point{pixel_x(series.x[i]), pixel_y(series.y[i])};
      if (std::isfinite(point.x) && std::isfinite(point.y)) {
        append(lines.back(), point);
      } else if (!lines.back().empty()) {
        lines.emplace_back();
      }
    }
    return lines;
  }

  void draw_series(const Series& series) {
    std::string path, points;
    for (const Line& line : lines_of(series)) {
      for (size_t i = 0; i < line.size(); ++i) {
        path += fmt::format("{}{:.1f} {:.1f}", i == 0 ? "M" : "L", line[i].x, line[i].y);
        points += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.2\"/>", line[i].x, line[i].y);
      }
      if (line.size() == 1) path += "h0.1";  // a lone value is a dot
    }
    if (path.empty()) return;
    const bool faint = series.style == Series::Style::faint_line;
    svg_ +=
        fmt::format("<path d=\"{}\" class=\"{}\" stroke=\"{}\"/>\n", path, faint ? "faint" : "line", colour_of(series));
    if (series.style == Series::Style::line_and_points) {
      svg_ += fmt::format("<g class=\"points\" fill=\"{}\">{}</g>\n", colour_of(series), points);
    }
  }

  const Panel& panel_;
  size_t index_;
  Range x_, y_;
  std::vector<LegendEntry> legend_;
  double top_, plot_top_;
  std::string svg_;
};

}  // namespace

std::string xml_escaped(std::string_view text) {
  std::string escaped;
  for (const char c : valid_utf8(text)) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += byte < 0x20 || byte == 0x7f ? ' ' : c;
    }
  }
  return escaped;
}

std::string to_svg(const Figure& figure) {
  std::string title =
      fmt::format("<text x=\"{}\" y=\"38\" class=\"title\">{}</text>\n", kLeft, xml_escaped(figure.title));
  double top = kTitleSpace;
  if (!figure.subtitle.empty()) {
    title += fmt::format("<text x=\"{}\" y=\"60\" class=\"subtitle\">{}</text>\n", kLeft, xml_escaped(figure.subtitle));
    top += kSubtitleSpace;
  }
  std::string panels;
  for (size_t i = 0; i < figure.panels.size(); ++i) {
    PanelDrawing drawing(figure.panels[i], i, top);
    panels += drawing.draw();
    top = drawing.bottom();
  }
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" role=\"img\">\n"
      "<title>{2}</title>\n{3}<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{4}{5}</svg>\n",
      kWidth, top + kBottom, xml_escaped(figure.title), kStyle, title, panels);
}

}  // namespace margay
