# The libraries of others. tools/packages.txt names the Debian packages that bring them.
# Targets: Boost::headers, re2::re2, prometheus-cpp::core, CLI11::CLI11, spdlog::spdlog, fmt::fmt,
# yaml-cpp::yaml-cpp, CURL::libcurl, OpenSSL::Crypto, OpenSSL::SSL, Threads::Threads, GTest::gtest_main, GTest::gmock.
include(GoogleTest)

find_package(Threads REQUIRED)
find_package(Boost 1.81 REQUIRED)
find_package(OpenSSL 3.0 REQUIRED)
find_package(CURL REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(CLI11 REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(prometheus-cpp REQUIRED CONFIG)
find_package(GTest REQUIRED)

# Versions before 0.8 of yaml-cpp export a target without a namespace.
if(NOT TARGET yaml-cpp::yaml-cpp)
  add_library(yaml-cpp::yaml-cpp ALIAS yaml-cpp)
endif()

# Debian's re2 has a pkg-config file only.
find_package(PkgConfig REQUIRED)
pkg_check_modules(re2 REQUIRED IMPORTED_TARGET GLOBAL re2)
add_library(re2::re2 ALIAS PkgConfig::re2)
