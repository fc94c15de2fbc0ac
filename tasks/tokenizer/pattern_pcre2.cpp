#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>
#include <new>
#include <string>

#include "engine/error.h"
#include "engine/names.h"
#include "tasks/tokenizer/pattern.h"
#include "tasks/tokenizer/pattern_syntax.h"

namespace margay {
namespace {

constexpr size_t kLongestPattern = 10'000;        // bytes
constexpr uint32_t kMostSteps = 1u << 28;         // of one search: seconds
constexpr uint32_t kMostHeap = 1u << 18;          // KiB
constexpr size_t kFirstStack = size_t{32} << 10;  // of compiled code, in bytes
constexpr size_t kLastStack = size_t{64} << 20;

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};

template <class T>
T* checked(T* object) {
  if (!object) throw std::bad_alloc();
  return object;
}

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

PCRE2_SPTR units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

/// What a search writes to; any pattern may use it, one thread at a time.
struct Workspace {
  Workspace() {
    pcre2_set_match_limit(context.get(), kMostSteps);
    pcre2_set_heap_limit(context.get(), kMostHeap);
    // Without a stack of its own, compiled code has 32 KiB of the thread's.
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }

  std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data_free>> match{checked(pcre2_match_data_create(1, nullptr))};
  std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context_free>> context{
      checked(pcre2_match_context_create(nullptr))};
  // Null where the system allows no compiled code.
  std::unique_ptr<pcre2_jit_stack, Freed<pcre2_jit_stack_free>> stack{
      pcre2_jit_stack_create(kFirstStack, kLastStack, nullptr)};
};

Workspace& workspace() {
  thread_local Workspace workspace;
  return workspace;
}

}  // namespace

struct Pattern::Code {
  Code(std::string_view pattern, std::string_view shown, uint32_t options) {
    if (pattern.size() > kLongestPattern) {
      throw DataError(fmt::format("the split pattern {} is longer than {} bytes", quoted(shown), kLongestPattern));
    }
    const std::unique_ptr<pcre2_compile_context, Freed<pcre2_compile_context_free>> context{
        checked(pcre2_compile_context_create(nullptr))};
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE place = 0;
    code.reset(pcre2_compile(units(pattern), pattern.size(), options | PCRE2_UTF, &error, &place, context.get()));
    if (!code) {
      throw DataError(
          fmt::format("the split pattern {} is no regular expression: {}", quoted(shown), message_of(error)));
    }
    // Where the system forbids compiled code, the pattern is interpreted.
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
    pcre2_pattern_info(code.get(), PCRE2_INFO_MAXLOOKBEHIND, &look_behind);
  }

  std::unique_ptr<pcre2_code, Freed<pcre2_code_free>> code;
  uint32_t look_behind = 0;  // characters
};

Pattern::Pattern(std::shared_ptr<const Code> code) : code_(std::move(code)) {}

Pattern Pattern::expression(std::string_view source) {
  return Pattern(std::make_shared<Code>(pcre2_syntax(source), source, PCRE2_UCP | PCRE2_MULTILINE));
}

Pattern Pattern::literal(std::string_view text) { return Pattern(std::make_shared<Code>(text, text, PCRE2_LITERAL)); }

bool Pattern::looks_back() const { return code_->look_behind > 0; }

Pattern::Found Pattern::find(std::string_view text, size_t from, bool open, Match& match) const {
  Workspace& space = workspace();
  const uint32_t options = PCRE2_NO_UTF_CHECK | (open ? PCRE2_PARTIAL_HARD : 0);
  const int result =
      pcre2_match(code_->code.get(), units(text), text.size(), from, options, space.match.get(), space.context.get());
  if (result == PCRE2_ERROR_NOMATCH) return Found::none;
  if (result == PCRE2_ERROR_PARTIAL) return Found::open;
  if (result == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
  if (result < 0) throw DataError(fmt::format("the split pattern fails on this text: {}", message_of(result)));
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(space.match.get());
  match = {range[0], range[1]};
  return Found::match;
}

}  // namespace margay
