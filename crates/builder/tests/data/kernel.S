/*
 * A kernel image for tests: it has the notes and segments of a 64-bit PV kernel, and code that the x86
 * filter of xz changes. It is never run.
 */
        .macro  xen_text number, text
        .pushsection .note.Xen, "a", @note
        .balign 4
        .long   4, 1f - 0f, \number
        .asciz  "Xen"
0:      .asciz  "\text"
1:      .balign 4
        .popsection
        .endm

        .macro  xen_quad number, value
        .pushsection .note.Xen, "a", @note
        .balign 4
        .long   4, 8, \number
        .asciz  "Xen"
        .quad   \value
        .popsection
        .endm

        xen_text 6, "test"
        xen_text 5, "xen-3.0"
        xen_text 8, "generic"
        xen_quad 3, 0xffffffff80000000
        xen_quad 1, start
        xen_quad 2, hypercall_page

        .text
        .globl  start
start:  hlt
        jmp     start
/* Calls to one place from many: equal only after the filter has made their targets absolute. */
        .set    i, 0
        .rept   1500
        call    start
        .byte   0x48, 0x89, i & 0xff
        .set    i, i * 5 + 7
        .endr

        .balign 4096
hypercall_page:
        .skip   4096

        .data
/* Bytes that no compressor can do much about: a linear congruential sequence. */
        .set    i, 1
        .rept   2048
        .set    i, (i * 1103515245 + 12345) & 0x7fffffff
        .byte   (i >> 16) & 0xff
        .endr
        .ascii  "A text that repeats, a text that repeats, a text that repeats."

        .bss
        .skip   0x10000
