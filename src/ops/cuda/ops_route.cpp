// route, group, and all that is done before the experts at once.
#include "ops/cuda/backend.h"

namespace lorry::cuda {

namespace {

RouteArgs route_args(Call& call, const Route& route, const Tensor& scores, const Routing& routing) {
  const auto experts = static_cast<int32_t>(scores.cols());
  LORRY_CHECK(experts <= kMaxExperts && routing.top_k <= experts, "{} of {} experts", routing.top_k,
              experts);
  return {call.in<float>(scores),
          scores.pitch,
          call.out<int32_t>(route.expert),
          call.out<float>(route.weight),
          route.expert.pitch,
          route.weight.pitch,
          static_cast<int32_t>(scores.rows()),
          experts,
          routing.top_k,
          routing.norm_p};
}

// Where the lists of a route go. `count`: where the number of segments does.
GroupArgs group_args(Call& call, const Route& route, const LoraPlan& plan,
                     const Staging::Room& count) {
  GroupArgs a{};
  a.rows = static_cast<int32_t>(route.expert.rows());
  a.k = static_cast<int32_t>(route.expert.cols());
  a.first_own = route.first_own;
  a.groups = route.groups_count();
  a.slot = call.out<int32_t>(route.slot);
  a.slot_pitch = route.slot.pitch;
  a.source = call.out<int32_t>(route.source);
  a.begin = call.out<int32_t>(route.begin);
  a.n_segments = reinterpret_cast<int32_t*>(count.device);
  if (plan.adapters.empty() || plan.row_adapter.empty()) return a;
  a.row_adapter = call.in(plan.row_adapter);
  a.segments = call.out<Segment>(route.segment);
  const int64_t most = int64_t{a.groups} * static_cast<int64_t>(plan.adapters.size());
  a.max_segments = static_cast<int32_t>(std::min<int64_t>(most, int64_t{a.rows} * a.k));
  return a;
}

// Where the lists are the processor's, it wants the number itself.
void count_segments(Call& call, Route& route, const GroupArgs& a, const Staging::Room& count) {
  route.n_segments = a.max_segments;
  if (a.max_segments == 0 || call.on_device(route.begin.data)) return;
  call.fetch(count);
  std::memcpy(&route.n_segments, count.host, sizeof(int32_t));
}

}  // namespace

void CudaOps::route(Route& route, Tensor scores, const Routing& routing) {
  Call call(memory_, staging_);
  cuda::route(call.stream(), route_args(call, route, scores, routing));
}

void CudaOps::group(Route& route, const LoraPlan& plan) {
  Call call(memory_, staging_);
  const Staging::Room count = call.room(sizeof(int32_t));
  GroupArgs a = group_args(call, route, plan, count);
  a.expert = call.in<int32_t>(route.expert);
  a.expert_pitch = route.expert.pitch;
  cuda::group(call.stream(), a);
  count_segments(call, route, a, count);
}

void CudaOps::dispatch(Route& route, Tensor y, Tensor x, Tensor scores, const Routing& routing,
                       const LoraPlan& plan) {
  if (scores.rows() * routing.top_k > kFewChoices || scores.cols() > kFewExperts) {
    return Ops::dispatch(route, y, x, scores, routing, plan);
  }
  Call call(memory_, staging_);
  const Staging::Room count = call.room(sizeof(int32_t));
  DispatchArgs a{};
  a.route = route_args(call, route, scores, routing);
  a.group = group_args(call, route, plan, count);
  const int64_t size = size_of(x.dtype);
  a.rows.y = call.out<unsigned char>(y);
  a.rows.x = call.in<unsigned char>(x);
  a.rows.y_pitch = y.pitch * size;
  a.rows.x_pitch = x.pitch * size;
  a.rows.bytes = x.cols() * size;
  cuda::dispatch(call.stream(), a);
  count_segments(call, route, a.group, count);
}

}  // namespace lorry::cuda
