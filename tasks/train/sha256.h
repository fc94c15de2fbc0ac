#pragma once
#include <cstdint>
#include <span>
#include <string>

namespace margay {

/// The SHA-256 digest of some bytes (FIPS 180-4) in 64 hexadecimal digits.
std::string sha256(std::span<const uint8_t> bytes);

}  // namespace margay
