# Writes SOURCE: an assembler file with the bytes of TAR and their SHA-256 (cli/demo.cpp reads both).
file(SHA256 ${TAR} digest)
file(WRITE ${SOURCE} "    .section .rodata
    .global lorry_demo_begin
    .global lorry_demo_end
    .global lorry_demo_digest
    .balign 64
lorry_demo_begin:
    .incbin \"${TAR}\"
lorry_demo_end:
lorry_demo_digest:
    .asciz \"${digest}\"
    .section .note.GNU-stack,\"\",%progbits
")
