// Words, buffers of them whose rows lie well in caches, and what they take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace fpgrad {

// An allocator for whole cache lines, so that no row of a power-of-two length crosses one.
template <class T> struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <class U> Aligned(const Aligned<U>&) {}
    T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
    void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t{64}); }
    template <class U> bool operator==(const Aligned<U>&) const { return true; }
};
template <class T> using Buffer = std::vector<T, Aligned<T>>;

template <class V> std::int64_t octets(const V& vector) {
    return static_cast<std::int64_t>(vector.capacity() * sizeof(typename V::value_type));
}

using Word = std::uint32_t;

}  // namespace fpgrad
