#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace margay {

/// Rows of text under named columns, as a CSV file holds them. Cells have no commas, quotes or line ends.
class Table {
 public:
  explicit Table(std::vector<std::string> columns = {}) : columns_(std::move(columns)) {}

  const std::vector<std::string>& columns() const { return columns_; }
  size_t size() const { return rows_.size(); }

  /// Throws std::logic_error for another number of cells than columns, or a cell that CSV would have to quote.
  void add(std::vector<std::string> cells);
  /// All rows of another table with the same columns.
  void append(const Table& other);

  /// Throws std::logic_error for a column that is not there.
  const std::string& text(size_t row, std::string_view column) const;
  /// NaN for a cell that is empty. Throws DataError for one that is no number.
  double number(size_t row, std::string_view column) const;

  std::string to_csv() const;

 private:
  size_t index_of(std::string_view column) const;

  std::vector<std::string> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// Reads CSV text. Throws DataError naming `source` and the line unless the columns are the ones given and every row
/// has as many cells.
Table parse_table(std::string_view csv, const std::vector<std::string>& columns, std::string_view source);

}  // namespace margay
