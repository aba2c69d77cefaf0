# The script of lorry_embed: writes SOURCE, an assembler file with the bytes of FILES and a table of
# them (base/embedded.h), from SYMBOL_begin to SYMBOL_end.
set(bytes "")
set(table "")
set(n 0)
foreach(file IN LISTS FILES)
  file(SHA256 ${file} digest)
  cmake_path(GET file FILENAME name)
  string(APPEND bytes "    .balign 64
.Lbegin${n}:
    .incbin \"${file}\"
.Lend${n}:
.Lname${n}:
    .asciz \"${name}\"
.Ldigest${n}:
    .asciz \"${digest}\"
")
  string(APPEND table "    .quad .Lname${n}, .Lbegin${n}, .Lend${n}, .Ldigest${n}\n")
  math(EXPR n "${n} + 1")
endforeach()
file(WRITE ${SOURCE} "    .section .rodata
${bytes}    .section .data.rel.ro,\"aw\"
    .global ${SYMBOL}_begin
    .global ${SYMBOL}_end
    .balign 8
${SYMBOL}_begin:
${table}${SYMBOL}_end:
    .section .note.GNU-stack,\"\",%progbits
")
