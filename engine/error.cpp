#include "engine/error.h"

#include <fmt/format.h>

namespace margay {

OpError::OpError(std::string_view op, std::string_view arg, std::string_view wanted, std::string_view got)
    : Error(fmt::format("{}: {} must be {}, got {}", op, arg, wanted, got)), op_(op), arg_(arg) {}

}  // namespace margay
