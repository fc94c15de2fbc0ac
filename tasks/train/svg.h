#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "tasks/train/axis.h"

namespace margay {

/// A line or a filled band in a panel.
struct Series {
  enum class Style { line, faint_line, dashed_line, line_and_points, band };
  std::string name = {};  ///< in the legend; empty = not listed
  std::string note = {};  ///< after the name, in bold: a result
  std::vector<double> x = {}, y = {};
  size_t colour = 0;  ///< index into the palette, cycled
  Style style = Style::line;
  std::vector<double> top = {};  ///< of a band, which is filled between y and it
};

/// One coordinate system. Values that are not finite are left out and break a line.
struct Panel {
  std::string title;
  Axis x, y;
  std::vector<Series> series;
};

/// Panels with a title, in rows of `columns`. Several columns share the legend of the first panel, and the label of the
/// y axis stands on the left alone.
struct Figure {
  std::string title, subtitle;
  std::vector<Panel> panels;
  size_t columns = 1;
  double plot_height = 250;  ///< of every panel, in pixels
};

/// The figure as an SVG document, 900 pixels wide, on a light background.
std::string to_svg(const Figure& figure);

/// Text for an XML document: escaped, without control characters, valid UTF-8.
std::string xml_escaped(std::string_view text);

}  // namespace margay
