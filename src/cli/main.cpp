#include "cli/commands.h"

int main(int argc, char** argv) { return lorry::run_command_line(argc, argv); }
