#include "parallel/device_comm.h"

#include <utility>

namespace lorry {

namespace {

class DeviceComm final : public Comm {
 public:
  DeviceComm(std::shared_ptr<Comm> host, std::unique_ptr<DeviceLink> link)
      : host_(std::move(host)), link_(std::move(link)) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  int local_size() const override { return host_->local_size(); }
  // With what lies between rows, which nobody reads.
  void all_reduce(Tensor x) override {
    if (x.rows() == 0) return;
    link_->sum(x.row<float>(0), (x.rows() - 1) * x.pitch + x.cols());
    bytes_sent_ += x.shape.size() * int64_t{sizeof(float)};
  }
  void gather(Tensor whole, Tensor part, std::span<const int64_t> widths) override {
    host_->gather(whole, part, widths);
  }
  void broadcast(Bytes& message) override { host_->broadcast(message); }
  std::vector<Bytes> collect(std::span<const std::byte> message) override {
    return host_->collect(message);
  }
  void end() override { host_->end(); }
  int64_t bytes_sent() const override { return bytes_sent_ + host_->bytes_sent(); }

 private:
  const std::shared_ptr<Comm> host_;
  const std::unique_ptr<DeviceLink> link_;
  int64_t bytes_sent_ = 0;
};

}  // namespace

std::unique_ptr<Comm> make_device_comm(std::shared_ptr<Comm> host,
                                       std::unique_ptr<DeviceLink> link) {
  return std::make_unique<DeviceComm>(std::move(host), std::move(link));
}

}  // namespace lorry
