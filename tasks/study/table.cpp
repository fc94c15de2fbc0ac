#include "tasks/study/table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <stdexcept>

#include "engine/error.h"

namespace margay {
namespace {

std::vector<std::string> cells_of(std::string_view line) {
  std::vector<std::string> cells;
  for (size_t begin = 0;;) {
    const size_t comma = std::min(line.size(), line.find(',', begin));
    cells.emplace_back(line.substr(begin, comma - begin));
    if (comma == line.size()) return cells;
    begin = comma + 1;
  }
}

}  // namespace

void Table::add(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) throw std::logic_error("table: a row must have a cell for every column");
  for (const std::string& cell : cells) {
    if (cell.find_first_of(",\"\r\n") != std::string::npos)
      throw std::logic_error("table: a cell must not need quotes");
  }
  rows_.push_back(std::move(cells));
}

void Table::append(const Table& other) {
  if (other.columns_ != columns_) throw std::logic_error("table: columns of appended rows must be the same");
  rows_.insert(rows_.end(), other.rows_.begin(), other.rows_.end());
}

size_t Table::index_of(std::string_view column) const {
  const auto found = std::find(columns_.begin(), columns_.end(), column);
  if (found == columns_.end()) throw std::logic_error(fmt::format("table: no column {}", column));
  return static_cast<size_t>(found - columns_.begin());
}

const std::string& Table::text(size_t row, std::string_view column) const { return rows_.at(row)[index_of(column)]; }

double Table::number(size_t row, std::string_view column) const {
  const std::string& cell = text(row, column);
  if (cell.empty()) return std::numeric_limits<double>::quiet_NaN();
  double value = 0;
  const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
  if (error != std::errc() || end != cell.data() + cell.size())
    throw DataError(fmt::format("column {} must hold numbers, got \"{}\"", column, cell));
  return value;
}

std::string Table::to_csv() const {
  std::string csv = fmt::format("{}\n", fmt::join(columns_, ","));
  for (const auto& row : rows_) csv += fmt::format("{}\n", fmt::join(row, ","));
  return csv;
}

Table parse_table(std::string_view csv, const std::vector<std::string>& columns, std::string_view source) {
  Table table(columns);
  size_t line_number = 0;
  while (!csv.empty()) {
    const size_t end = std::min(csv.size(), csv.find('\n'));
    std::vector<std::string> cells = cells_of(csv.substr(0, end));
    csv.remove_prefix(std::min(csv.size(), end + 1));
    if (++line_number == 1) {
      if (cells != columns)
        throw DataError(fmt::format("{}: the columns must be {}, got {}", source, fmt::join(columns, ", "),
                                    fmt::join(cells, ", ")));
      continue;
    }
    if (cells.size() != columns.size())
      throw DataError(
          fmt::format("{}:{}: must have {} cells, got {}", source, line_number, columns.size(), cells.size()));
    try {
      table.add(std::move(cells));
    } catch (const std::logic_error&) {
      throw DataError(fmt::format("{}:{}: a cell must not hold quotes", source, line_number));
    }
  }
  if (line_number == 0) throw DataError(fmt::format("{}: the columns are missing", source));
  return table;
}

}  // namespace margay
