#pragma once
#include <string>

#include "engine/error.h"

namespace margay::test {

/// The message of the OpError that `call` throws; empty if it throws none.
template <class Call>
std::string op_error(const Call& call) {
  try {
    call();
  } catch (const OpError& error) {
    return error.what();
  }
  return {};
}

}  // namespace margay::test
