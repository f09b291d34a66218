# SPDX-License-Identifier: GPL-2.0
"""CRC32C, fast enough without a table of the processor's: by shifts of large integers.

The polynomial P of CRC32C divides x^A + x^B + x^C + 1, so x^A = x^B + x^C + 1 (mod P), and as squaring is
linear here, the same is true of A * 2^k, B * 2^k and C * 2^k. By that the first bits of a long message
are added to later ones, many at a time, until the message is short. `self_test` looks at both.
"""

POLYNOMIAL = 0x11EDC6F41
A, B, C = 5685, 1362, 426
# Bits by which a message is made shorter with k = 0.
STEP = A - B


def _table():
    reflected = int(f"{POLYNOMIAL & 0xffffffff:032b}"[::-1], 2)
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (reflected if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


def by_table(state, data):
    for byte in data:
        state = TABLE[(state ^ byte) & 0xff] ^ state >> 8
    return state


def update(state, data):
    """The state of the register after `data`: before the first byte and after the last inverted."""
    bits = len(data) * 8
    if bits < 2 * A:
        return by_table(state, data)
    # The first byte's lowest bit is the highest power of x.
    message = int.from_bytes(data, "little") ^ state
    k = 0
    while (A + STEP) << k + 1 <= bits:
        k += 1
    while k >= 0:
        step, mask = STEP << k, (1 << (STEP << k)) - 1
        while (A << k) + step <= bits:
            first = message & mask
            message = (message ^ first << (A - B << k) ^ first << (A - C << k) ^ first << (A << k)) >> step
            bits -= step
        k -= 1
    # Zeros in front do not count, and make whole bytes of it.
    front = -bits % 8
    return by_table(0, (message << front).to_bytes((bits + front) // 8, "little"))


def crc32c(data):
    return update(0xffffffff, data) ^ 0xffffffff


def self_test():
    def power(exponent):
        value = 1
        for _ in range(exponent):
            value <<= 1
            if value >> 32:
                value ^= POLYNOMIAL
        return value

    assert power(A) == power(B) ^ power(C) ^ 1
    # RFC 3720, B.4.
    assert crc32c(bytes(32)) == 0x8a9136aa
    assert crc32c(bytes(range(32))) == 0x46dd794e
    assert crc32c(b"123456789") == 0xe3069283
    for length in (1420, 1421, 1422, 3000, 70001):
        data = bytes(i * i * 7 + i >> 3 & 0xff for i in range(length))
        assert update(0x12345678, data) == by_table(0x12345678, data), length
