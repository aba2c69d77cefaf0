// The operations that work row by row.
#include <cmath>

#include "ops/cuda/backend.h"
#include "ops/cuda/cuda_ops.h"

namespace lorry {

CudaStatus cuda_status() {
  if (const char* why = cuda::why_no_device()) return {true, false, why, {}};
  const cuda::DeviceFacts f = cuda::device_facts();
  return {true, true,
          fmt::format("{}, compute capability {}.{}, {} multiprocessors, {:.1f} GiB ({:.1f} free)",
                      f.name, f.major, f.minor, f.processors,
                      static_cast<double>(f.memory) / 0x1p30, static_cast<double>(f.free) / 0x1p30),
          f.name};
}

std::unique_ptr<Ops> make_cuda_ops(Dtype act, ThreadPool& pool) {
  LORRY_CHECK(is_act(act), "{}", to_string(act));
  if (const char* why = cuda::why_no_device()) {
    fail(Code::unsupported, "no CUDA device can be used: {}", why);
  }
  return std::make_unique<cuda::CudaOps>(act, pool);
}

namespace cuda {

namespace {

const Tensor& only(std::span<const Tensor> parts) {
  LORRY_CHECK(parts.size() == 1, "{} parts: ranks with devices have added theirs up", parts.size());
  return parts.front();
}

}  // namespace

const void* Call::in(const void* p, size_t bytes) {
  if (p == nullptr || memory_.contains(p)) return p;
  const Staging::Room r = room(bytes);
  std::memcpy(r.host, p, bytes);
  staging_.send(r);
  return r.device;
}

void* Call::out(void* p, size_t bytes) {
  if (p == nullptr || memory_.contains(p)) return p;
  const Staging::Room r = room(bytes);
  std::memcpy(r.host, p, bytes);
  staging_.send(r);
  out_.push_back({p, r});
  return r.device;
}

void Call::finish() {
  for (const Copy& c : out_) {
    staging_.fetch(c.room);
    std::memcpy(c.to, c.room.host, c.room.bytes);
  }
  out_.clear();
}

void CudaOps::embed(Tensor y, Tensor table, Tensor ids) {
  Call call(memory_, staging_);
  cuda::embed(call.stream(),
              {call.out<float>(y), y.pitch, call.in(table), table.pitch, call.in<int32_t>(ids),
               y.rows(), y.cols()},
              type());
}

void CudaOps::norm(Tensor y, Tensor x, const Norm& n) {
  Call call(memory_, staging_);
  cuda::norm(call.stream(),
             {call.out(y),
              y.pitch,
              call.in<float>(x),
              x.pitch,
              nullptr,
              nullptr,
              0,
              {},
              call.in<float>(n.weight),
              x.rows(),
              x.cols(),
              n.eps,
              n.centered},
             type());
}

void CudaOps::add_norm(Tensor y, Tensor x, std::span<const Tensor> parts, const Norm& n) {
  const Tensor& part = only(parts);
  Call call(memory_, staging_);
  auto* sum = call.out<float>(x);
  cuda::norm(call.stream(),
             {call.out(y),
              y.pitch,
              sum,
              x.pitch,
              sum,
              call.in<float>(part),
              part.pitch,
              {},
              call.in<float>(n.weight),
              x.rows(),
              x.cols(),
              n.eps,
              n.centered},
             type());
}

void CudaOps::clamp(Tensor x, float limit) {
  if (std::isinf(limit)) return;
  Call call(memory_, staging_);
  cuda::clamp(call.stream(), {call.out<float>(x), x.pitch, x.rows(), x.cols(), limit});
}

void CudaOps::gather(Tensor y, Tensor x, Tensor index) {
  Call call(memory_, staging_);
  const int64_t size = size_of(x.dtype);
  cuda::gather(call.stream(),
               {call.out<unsigned char>(y), call.in<unsigned char>(x), y.pitch * size,
                x.pitch * size, call.in<int32_t>(index), y.rows(), y.cols() * size});
}

void CudaOps::glu(Tensor y, Tensor gu, Activation activation) {
  Call call(memory_, staging_);
  cuda::glu(call.stream(),
            {call.out(y), y.pitch, call.in<float>(gu), gu.pitch, y.rows(), y.cols(),
             static_cast<int>(activation)},
            type());
}

namespace {

CombineArgs combine_args(Call& call, float* y, int64_t y_pitch, const Tensor& d,
                         const Route& route) {
  return {y,
          y_pitch,
          call.in<float>(d),
          d.pitch,
          call.in<int32_t>(route.slot),
          call.in<float>(route.weight),
          route.slot.pitch,
          route.weight.pitch,
          route.slot.rows(),
          d.cols(),
          static_cast<int32_t>(route.slot.cols())};
}

}  // namespace

void CudaOps::combine(Tensor y, Tensor d, const Route& route) {
  Call call(memory_, staging_);
  cuda::combine(call.stream(), combine_args(call, call.out<float>(y), y.pitch, d, route));
}

void CudaOps::combine_norm(Tensor y, Tensor x, Tensor, Tensor d, const Route& route,
                           const Norm& n) {
  Call call(memory_, staging_);
  auto* sum = call.out<float>(x);
  cuda::norm(call.stream(),
             {call.out(y), y.pitch, sum, x.pitch, sum, nullptr, 0,
              combine_args(call, nullptr, 0, d, route), call.in<float>(n.weight), x.rows(),
              x.cols(), n.eps, n.centered},
             type());
}

void CudaOps::add(Tensor x, std::span<const Tensor> parts) {
  const Tensor& y = only(parts);
  Call call(memory_, staging_);
  cuda::add(call.stream(),
            {call.out<float>(x), x.pitch, call.in<float>(y), y.pitch, x.rows(), x.cols()});
}

void CudaOps::add_silu(Tensor y, Tensor x, Tensor v, Tensor bias) {
  Call call(memory_, staging_);
  cuda::add_silu(call.stream(),
                 {call.out(y), y.pitch, call.in(x), x.pitch, call.in<float>(v), v.pitch,
                  call.in<float>(bias), y.rows(), y.cols()},
                 type());
}

}  // namespace cuda
}  // namespace lorry
