// torch's functorch headers include nlohmann/json.hpp, which torch does not ship. They use it to write
// interpreter stacks as text, which nobody here does: enough of it is declared to compile them. The folder is
// searched last, so that the real one is found where there is one.
#pragma once

#include <string>

namespace nlohmann {

struct json {
  json() = default;
  template <typename T>
  explicit json(const T&) {}
  std::string dump() const;
  static json parse(const std::string&);
  template <typename T>
  T get() const;
};

}  // namespace nlohmann
