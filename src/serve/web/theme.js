// Before the first paint: the theme that was chosen here before. None: the system's.
try {
  const theme = localStorage.getItem("lorry-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage can be forbidden; the page works without it.
}
