#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace margay::cli {

/// Standard output was closed by its reader, as `| head` does: there is nobody left to tell.
struct OutputClosed {};

/// Writes to standard output at once. Throws OutputClosed, and ResourceError where the disk behind it is full.
void print_out(std::string_view text);
/// Writes one line to standard error, whatever happens to it.
void print_error(std::string_view line);

/// Makes writing to a closed pipe or beyond a file's limit an error instead of the end of the process, and gives the
/// standard descriptors a place to go where the caller has closed them, so that no file of ours takes their number.
void prepare_standard_streams();

/// Whether standard output is a terminal that can move its cursor.
bool output_is_terminal();
/// Whether colours are welcome there: a terminal, and no NO_COLOR.
bool output_has_colour();
/// Columns of the terminal; 80 where they are unknown.
size_t output_columns();
/// Whether the locale is UTF-8.
bool locale_is_utf8();

}  // namespace margay::cli
