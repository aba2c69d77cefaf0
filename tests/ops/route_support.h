#pragma once
#include "ops/support.h"

namespace lorry::test {

// A Route with its memory.
struct OwnedRoute {
  OwnedRoute(int32_t rows, int32_t experts, int32_t k)
      : expert(Dtype::i32, rows, k),
        weight(Dtype::f32, rows, k),
        slot(Dtype::i32, rows, k),
        source(Dtype::i32, 1, int64_t{rows} * k),
        begin(Dtype::i32, 1, experts + 1),
        segment(Dtype::u8, 1, int64_t{rows} * k * int64_t{sizeof(LoraSegment)}) {
    route.expert = expert();
    route.weight = weight();
    route.slot = slot();
    route.source = view(source.data(), Dtype::i32, {int64_t{rows} * k});
    route.begin = view(begin.data(), Dtype::i32, {experts + 1});
    route.segment = view(segment.data(), Dtype::u8, segment().shape);
    route.experts = experts;
  }
  Matrix expert, weight, slot, source, begin, segment;
  Route route;
};

}  // namespace lorry::test
