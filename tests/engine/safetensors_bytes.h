#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "engine/error.h"

namespace margay::test {

/// A safetensors file of this header and data, whatever they hold.
inline std::string safetensors_bytes(std::string_view json, std::string_view data) {
  const uint64_t length = json.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes.append(json).append(data);
}

/// What the DataError that `call` throws says; "nothing was thrown" if it does not throw. Other exceptions pass.
template <class Call>
std::string data_error(const Call& call) {
  try {
    call();
  } catch (const DataError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace margay::test
