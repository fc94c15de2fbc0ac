#pragma once
#include <variant>

#include "engine/host_device.h"
#include "ops/unary_functors.h"

// y = value(a, b) of the elementwise ops of two arguments, for scalars on both devices and vectors of CPU kernels.
// Where they are not just 1 or -1, da and db are the derivatives of y with respect to a and b; `da_reads` and
// `db_reads` name what they read, the other argument is then arbitrary.
namespace margay::functors {

inline constexpr int kReadsA = 1, kReadsB = 2;

struct Add {
  template <class T>
  HOST_DEVICE static T value(T a, T b) {
    return a + b;
  }
};

struct Sub {
  template <class T>
  HOST_DEVICE static T value(T a, T b) {
    return a - b;
  }
};

struct Mul {
  static constexpr int da_reads = kReadsB, db_reads = kReadsA;
  template <class T>
  HOST_DEVICE static T value(T a, T b) {
    return a * b;
  }
  template <class T>
  HOST_DEVICE static T da(T, T b) {
    return b;
  }
  template <class T>
  HOST_DEVICE static T db(T a, T) {
    return a;
  }
};

struct Div {
  static constexpr int da_reads = kReadsB, db_reads = kReadsA | kReadsB;
  template <class T>
  HOST_DEVICE static T value(T a, T b) {
    return a / b;
  }
  template <class T>
  HOST_DEVICE static T da(T, T b) {
    return T(1) / b;
  }
  template <class T>
  HOST_DEVICE static T db(T a, T b) {
    return -(a / b) / b;
  }
};

/// Ties belong to a; NaN on either side wins.
struct Maximum {
  static constexpr int da_reads = kReadsA | kReadsB, db_reads = kReadsA | kReadsB;
  template <class T>
  HOST_DEVICE static T value(T a, T b) {
    return select((a >= b) | !(a == a), a, b);
  }
  template <class T>
  HOST_DEVICE static T da(T a, T b) {
    return select((a >= b) | !(a == a), T(1), T(0));
  }
  template <class T>
  HOST_DEVICE static T db(T a, T b) {
    return T(1) - da(a, b);
  }
};

/// Ties belong to a; NaN on either side wins.
struct Minimum {
  static constexpr int da_reads = kReadsA | kReadsB, db_reads = kReadsA | kReadsB;
  template <class T>
  HOST_DEVICE static T value(T a, T b) {
    return select((a <= b) | !(a == a), a, b);
  }
  template <class T>
  HOST_DEVICE static T da(T a, T b) {
    return select((a <= b) | !(a == a), T(1), T(0));
  }
  template <class T>
  HOST_DEVICE static T db(T a, T b) {
    return T(1) - da(a, b);
  }
};

using Binary = std::variant<Add, Sub, Mul, Div, Maximum, Minimum>;
using BinaryWithFactors = std::variant<Mul, Div, Maximum, Minimum>;

struct Less {
  template <class T>
  HOST_DEVICE static bool value(T a, T b) {
    return a < b;
  }
};
struct LessEqual {
  template <class T>
  HOST_DEVICE static bool value(T a, T b) {
    return a <= b;
  }
};
struct Greater {
  template <class T>
  HOST_DEVICE static bool value(T a, T b) {
    return a > b;
  }
};
struct GreaterEqual {
  template <class T>
  HOST_DEVICE static bool value(T a, T b) {
    return a >= b;
  }
};
struct Equal {
  template <class T>
  HOST_DEVICE static bool value(T a, T b) {
    return a == b;
  }
};
struct NotEqual {
  template <class T>
  HOST_DEVICE static bool value(T a, T b) {
    return a != b;
  }
};

using Comparison = std::variant<Less, LessEqual, Greater, GreaterEqual, Equal, NotEqual>;

}  // namespace margay::functors
