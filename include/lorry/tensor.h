// Tensor: a non-owning view of row-major memory on one device. The last dimension is dense;
// rows may be further apart than they are long (`pitch`), so that a range of columns (q inside
// qkv) is a Tensor too. Who owns the memory: a Buffer, an Arena or the caller.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace lorry {

enum class Dtype : uint8_t { f32, f16, bf16, f8e4m3, i8, i32, i64, u8 };
enum class Device : uint8_t { cpu, cuda };

// Bytes of one element.
constexpr int64_t size_of(Dtype t) {
  switch (t) {
    case Dtype::i64:
      return 8;
    case Dtype::f32:
    case Dtype::i32:
      return 4;
    case Dtype::f16:
    case Dtype::bf16:
      return 2;
    case Dtype::f8e4m3:
    case Dtype::i8:
    case Dtype::u8:
      return 1;
  }
  return 0;
}

const char* to_string(Dtype t);

struct Shape {
  std::array<int64_t, 4> dim{1, 1, 1, 1};
  int rank = 0;

  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<int64_t> dims) {
    for (int64_t d : dims) dim[static_cast<size_t>(rank++)] = d;
  }
  // Negative i counts from the end.
  constexpr int64_t operator[](int i) const {
    return dim[static_cast<size_t>(i < 0 ? rank + i : i)];
  }
  constexpr int64_t size() const { return dim[0] * dim[1] * dim[2] * dim[3]; }
  friend constexpr bool operator==(const Shape&, const Shape&) = default;
};

std::string to_string(const Shape& s);  // "[3, 4]"

struct Tensor {
  std::byte* data = nullptr;
  Shape shape;
  int64_t pitch = 0;  // elements from one row (index along the last but one dimension) to the next
  Dtype dtype = Dtype::f32;
  Device device = Device::cpu;

  // Requires: T is the C++ type of dtype.
  template <class T>
  T* row(int64_t r) const {
    return reinterpret_cast<T*>(data) + r * pitch;
  }
  // A scalar (rank 0) is one row of one column; a vector is one row.
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < shape.rank; ++i) n *= shape[i];
    return n;
  }
  int64_t cols() const { return shape.rank == 0 ? 1 : shape[-1]; }
  explicit operator bool() const { return data != nullptr; }
};

// A dense view over `data`.
inline Tensor view(void* data, Dtype dtype, Shape shape) {
  Tensor t;
  t.data = static_cast<std::byte*>(data);
  t.shape = shape;
  t.pitch = t.cols();
  t.dtype = dtype;
  return t;
}

// Columns [first, first + count) of a matrix. Requires: within t.
inline Tensor columns(Tensor t, int64_t first, int64_t count) {
  t.data += first * size_of(t.dtype);
  t.shape = {t.shape[0], count};
  return t;
}

// Rows [first, first + count) of a matrix. Requires: within t.
inline Tensor rows(Tensor t, int64_t first, int64_t count) {
  t.data += first * t.pitch * size_of(t.dtype);
  t.shape = {count, t.shape[-1]};
  return t;
}

}  // namespace lorry
