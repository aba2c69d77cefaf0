// Comm: how the ranks of one model exchange partial results: the threads or processes of one host
// through shared memory (shared_memory.h), those of several through MPI (mpi.h). Alone there is
// nothing to do and every call is free.
//
// Every rank makes the same calls in the same order, with the same shapes; a call returns when its
// rank has what it needs. Sums run in the order of the ranks: the same bits on every rank, from run
// to run. One thread at a time calls. A rank that is lost ends the process (design §4, lost
// device): who started the ranks notices, or the transport does.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lorry/tensor.h"

namespace lorry {

using Bytes = std::vector<std::byte>;

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Ranks on this host, which share its memory and cores.
  virtual int local_size() const = 0;
  // x (f32, any pitch) becomes the sum over ranks.
  virtual void all_reduce(Tensor x) = 0;
  // Memory of this rank, zeroed and 4096-byte aligned, that the others read where it lies; null:
  // there is none, and parts() sums. Every rank asks for the same size, once. It lives as long as
  // the comm. Throws Error(over_capacity).
  virtual std::byte* common_memory(size_t bytes) {
    static_cast<void>(bytes);
    return nullptr;
  }
  // What is to be added up in this order to have the sum over ranks of y (f32, of the same shape,
  // place and pitch on every rank): each rank's y where that lies in common memory, else one, y,
  // which has become the sum. The parts can be read until the next call, on which this rank's y
  // must not be in the same place: others may still be reading.
  virtual std::span<const Tensor> parts(const Tensor& y) {
    all_reduce(y);
    part_ = y;
    return {&part_, 1};
  }
  // On rank 0 whole [R, W] f32 <- the ranks' parts [R, w] side by side, W the sum of `widths`,
  // which has an entry for each rank. Others' whole is not looked at.
  virtual void gather(Tensor whole, Tensor part, std::span<const int64_t> widths) = 0;
  // Rank 0's message to all.
  virtual void broadcast(Bytes& message) = 0;
  // On rank 0 every rank's message, by rank; elsewhere nothing. At most kMaxCollected bytes each.
  virtual std::vector<Bytes> collect(std::span<const std::byte> message) = 0;
  static constexpr size_t kMaxCollected = size_t{64} << 10;

  // The last call of a group that ends in order. A transport may end the group when one of its
  // ranks goes without.
  virtual void end() {}

  // Bytes that this rank has put into all_reduce, parts and gather for others to read.
  virtual int64_t bytes_sent() const = 0;

 private:
  Tensor part_;
};

std::unique_ptr<Comm> make_solo_comm();

// The least of the ranks' values, on every rank.
int64_t least_of(Comm& comm, int64_t value);

}  // namespace lorry
