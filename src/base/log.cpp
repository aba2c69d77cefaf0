#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace lorry {

struct Log::Sink {
  std::shared_ptr<spdlog::logger> logger;
};

namespace {

// `text` has no control bytes.
std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out += '"';
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warn:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
    case LogLevel::off:
      break;
  }
  return spdlog::level::off;
}

}  // namespace

std::string escape_control(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

Log::Log(Options options) : level_(options.level), sink_(std::make_unique<Sink>()) {
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(
      options.colour ? spdlog::color_mode::automatic : spdlog::color_mode::never);
  sink_->logger = std::make_shared<spdlog::logger>("lorry", std::move(sink));
  sink_->logger->set_level(spdlog::level::trace);
  sink_->logger->set_pattern(
      options.json ? R"({"timestamp":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","message":%v})"
                   : "%Y-%m-%d %H:%M:%S.%e %^%-5l%$ %v",
      options.json ? spdlog::pattern_time_type::utc : spdlog::pattern_time_type::local);
  // A full disk or a closed pipe is nothing that it could be told to.
  sink_->logger->set_error_handler([](const std::string&) {});
  json_ = options.json;
}

Log::~Log() = default;

void Log::write(LogLevel level, const std::string& message) {
  const std::string line = escape_control(message);
  sink_->logger->log(spdlog_level(level), "{}", json_ ? json_string(line) : line);
}

void Log::record(std::string_view message, const Fields& fields) {
  if (level_ > LogLevel::info) return;
  std::string line = json_ ? json_string(message) : std::string(message);
  for (const auto& [name, value] : fields) {
    line += json_ ? fmt::format(",\"{}\":", name) : fmt::format(" {}=", name);
    if (const auto* text = std::get_if<std::string>(&value)) {
      const std::string shown = escape_control(*text);
      line += json_ ? json_string(shown) : shown;
    } else if (const auto* number = std::get_if<double>(&value)) {
      line += fmt::format("{:.6g}", *number);
    } else {
      line += std::to_string(std::get<int64_t>(value));
    }
  }
  sink_->logger->log(spdlog::level::info, "{}", line);
}

}  // namespace lorry
