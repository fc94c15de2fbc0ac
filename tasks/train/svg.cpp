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
constexpr double kWidth = 900, kLeft = 76, kRight = 28, kPlotWidth = kWidth - kLeft - kRight;
constexpr double kColumnSpace = 66;  // between the plots of a row, for tick labels
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
.dashed { stroke-width: 1.6; stroke-dasharray: 6 4; fill: none }
.band { fill-opacity: 0.28; stroke: none }
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
  const auto include = [&](double value) {
    if (!std::isfinite(value) || (axis.log && value <= 0)) return;
    range = {std::min(range.low, value), std::max(range.high, value)};
  };
  for (const Series& one : series) {
    std::for_each((one.*values).begin(), (one.*values).end(), include);
    if (values == &Series::y) std::for_each(one.top.begin(), one.top.end(), include);
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

const char* class_of(const Series& series) {
  switch (series.style) {
    case Series::Style::faint_line:
      return "faint";
    case Series::Style::dashed_line:
      return "dashed";
    case Series::Style::band:
      return "band";
    default:
      return "line";
  }
}

/// The names of series from the height `top` on, each with a piece of how it is drawn.
std::string legend_svg(const std::vector<LegendEntry>& legend, double top) {
  std::string svg;
  for (const auto& [series, offset, row] : legend) {
    const double x = kLeft + offset, y = top + 8 + kLegendRow * static_cast<double>(row);
    const bool band = series->style == Series::Style::band;
    svg += fmt::format(
        "<path d=\"M{:.1f} {:.1f}{}\" class=\"{}\" {}=\"{}\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\">{} <tspan class=\"note\">{}</tspan></text>\n",
        x + 1, band ? y - 10 : y - 4.5, band ? "h16v11h-16z" : "h16", class_of(*series), band ? "fill" : "stroke",
        colour_of(*series), x + 24, y, xml_escaped(series->name), xml_escaped(series->note));
  }
  return svg;
}

/// Where a panel is drawn.
struct Place {
  double left, top, width, height;  // of the plot, with the title above it
  size_t index;
  bool legend, y_label;
};

class PanelDrawing {
 public:
  PanelDrawing(const Panel& panel, const Place& place)
      : panel_(panel),
        place_(place),
        x_(axis_range(panel.x, span_of(panel.series, &Series::x, panel.x))),
        y_(axis_range(panel.y, span_of(panel.series, &Series::y, panel.y))),
        legend_(place.legend ? legend_of(panel) : std::vector<LegendEntry>()),
        plot_top_(place.top + kPanelTitle + legend_height(legend_)) {}

  double bottom() const { return plot_top_ + place_.height + kAxisSpace; }

  std::string draw() {
    svg_ = fmt::format("<text x=\"{}\" y=\"{}\" class=\"panel\">{}</text>\n", place_.left, place_.top + 14,
                       xml_escaped(panel_.title)) +
           legend_svg(legend_, place_.top + kPanelTitle);
    draw_axes();
    svg_ += fmt::format(
        "<clipPath id=\"plot{0}\"><rect x=\"{1}\" y=\"{2}\" width=\"{3}\" height=\"{4}\"/></clipPath>\n"
        "<g clip-path=\"url(#plot{0})\">\n",
        place_.index, place_.left - 4, plot_top_ - 4, place_.width + 8, place_.height + 8);
    for (const Series& series : panel_.series)
      series.style == Series::Style::band ? draw_band(series) : draw_line(series);
    return svg_ + "</g>\n";
  }

 private:
  double pixel_x(double value) const { return place_.left + place_.width * axis_share(panel_.x, x_, value); }
  double pixel_y(double value) const { return plot_top_ + place_.height * (1 - axis_share(panel_.y, y_, value)); }

  void draw_axes() {
    const double left = place_.left, bottom = plot_top_ + place_.height;
    for (const Tick& tick : axis_ticks(panel_.y, y_, 5)) {
      const double y = pixel_y(tick.value);
      svg_ +=
          fmt::format("<path d=\"M{} {:.1f}h{}\" class=\"grid\"/><text x=\"{}\" y=\"{:.1f}\" class=\"y\">{}</text>\n",
                      left, y, place_.width, left - 10, y + 4.5, tick.label);
    }
    for (const Tick& tick : axis_ticks(panel_.x, x_, 8)) {
      const double x = pixel_x(tick.value);
      svg_ += fmt::format(
          "<path d=\"M{0:.1f} {1}v5\" class=\"axis\"/><text x=\"{0:.1f}\" y=\"{2}\" class=\"x\">{3}</text>\n", x,
          bottom, bottom + 20, tick.label);
    }
    svg_ += fmt::format("<path d=\"M{} {}h{}\" class=\"axis\"/>\n<text x=\"{}\" y=\"{}\" class=\"label x\">{}</text>\n",
                        left, bottom, place_.width, left + place_.width / 2, bottom + 42, xml_escaped(panel_.x.label));
    if (!place_.y_label) return;
    svg_ += fmt::format("<text transform=\"translate(22 {}) rotate(-90)\" class=\"label x\">{}</text>\n",
                        plot_top_ + place_.height / 2, xml_escaped(panel_.y.label));
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

  void draw_line(const Series& series) {
    std::string path, points;
    for (const Line& line : lines_of(series)) {
      for (size_t i = 0; i < line.size(); ++i) {
        path += fmt::format("{}{:.1f} {:.1f}", i == 0 ? "M" : "L", line[i].x, line[i].y);
        points += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.2\"/>", line[i].x, line[i].y);
      }
      if (line.size() == 1) path += "h0.1";  // a lone value is a dot
    }
    if (path.empty()) return;
    svg_ += fmt::format("<path d=\"{}\" class=\"{}\" stroke=\"{}\"/>\n", path, class_of(series), colour_of(series));
    if (series.style == Series::Style::line_and_points) {
      svg_ += fmt::format("<g class=\"points\" fill=\"{}\">{}</g>\n", colour_of(series), points);
    }
  }

  /// Along y and back along the top; values that cannot be shown are left out.
  void draw_band(const Series& series) {
    std::string forth, back;
    const size_t count = std::min({series.x.size(), series.y.size(), series.top.size()});
    for (size_t i = 0; i < count; ++i) {
      const double x = pixel_x(series.x[i]), y = pixel_y(series.y[i]), top = pixel_y(series.top[i]);
      if (!std::isfinite(x) || !std::isfinite(y) || !std::isfinite(top)) continue;
      forth += fmt::format("{}{:.1f} {:.1f}", forth.empty() ? "M" : "L", x, y);
      back.insert(0, fmt::format("L{:.1f} {:.1f}", x, top));
    }
    if (forth.empty()) return;
    svg_ += fmt::format("<path d=\"{}{}z\" class=\"band\" fill=\"{}\"/>\n", forth, back, colour_of(series));
  }

  const Panel& panel_;
  Place place_;
  Range x_, y_;
  std::vector<LegendEntry> legend_;
  double plot_top_;
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
  const size_t columns = std::max<size_t>(1, figure.columns);
  if (columns > 1 && !figure.panels.empty()) {
    const std::vector<LegendEntry> legend = legend_of(figure.panels.front());
    panels += legend_svg(legend, top);
    top += legend_height(legend) + 8;
  }
  const double gaps = kColumnSpace * static_cast<double>(columns - 1);
  const double width = (kPlotWidth - gaps) / static_cast<double>(columns);
  double bottom = top;
  for (size_t i = 0; i < figure.panels.size(); ++i) {
    const size_t column = i % columns;
    if (column == 0) top = bottom;
    const double left = kLeft + (width + kColumnSpace) * static_cast<double>(column);
    PanelDrawing drawing(figure.panels[i], {left, top, width, figure.plot_height, i, columns == 1, column == 0});
    panels += drawing.draw();
    bottom = drawing.bottom();
  }
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" role=\"img\">\n"
      "<title>{2}</title>\n{3}<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{4}{5}</svg>\n",
      kWidth, bottom + kBottom, xml_escaped(figure.title), kStyle, title, panels);
}

}  // namespace margay
