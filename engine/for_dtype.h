#pragma once
#include <stdexcept>
#include <string>

#include "engine/types.h"

namespace margay {

/// Calls function.operator()<T>() with the T of the list that `dtype` names. Throws std::logic_error if it has none.
template <class Function, class... Ts>
void for_dtype(DType dtype, Types<Ts...>, const Function& function) {
  const auto call_if = [&]<class T>() {
    if (dtype != dtype_of<T>) return false;
    function.template operator()<T>();
    return true;
  };
  if (!(... || call_if.template operator()<Ts>()))
    throw std::logic_error("no kernel for " + std::string(name_of(dtype)));
}

}  // namespace margay
