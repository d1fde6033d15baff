// Codes of fields of instructions, as in fpgrad.isa.instructions and fpgrad.formats.table.
#pragma once

namespace fpgrad {

enum Unit : int { LOAD = 0, MATRIX = 1, VECTOR = 2, STORE = 3, UNITS = 4 };
enum Space : int { SPACE_NONE = 0, SPACE_VECTOR = 1, SPACE_INBOX = 2, SPACE_OUTBOX = 3, SPACE_MASK = 4, SPACES = 5 };
enum Transfer : int { ROWS = 0, BYTES = 1, TILES = 2, MASKS = 3, SUM = 4 };
enum Source : int { ZERO, ONE, P0, P1, ACC, I0, I1, RANDOM, SOURCES };
enum Alu : int { ALU_PASS, ALU_ADD, ALU_MAX, ALU_MIN, ALU_GT, ALU_GE, ALU_EQ, ALU_GATE, ALUS };
enum Op : int { OP_PASS, OP_SCALARS, OP_SEED };
enum Function : int { NONE, RELU, EXP2, LOG2, RECIPROCAL, RSQRT, TANH, SIGMOID, PHI, FUNCTIONS };

}  // namespace fpgrad
